"""A language model's tokenizer comes from its own files and the configuration; what does not fit is said."""

import shutil

import pytest

from mindblip2.config import TokenizerConfig
from mindblip2.data.text.language_tokenizer import LanguageTokenizer
from mindblip2.data.text.tokenizer import BertTokenizer, load_tokenizer
from mindblip2.file_io import FileError


# ------------------------------------------------------------------------------------------------ bos, eos, a
@pytest.mark.parametrize(
    "kind, around", [("LlamaTokenizer", (True, False)), ("BaichuanTokenizer", (False, False))]
)
def test_what_each_model_puts_around_a_text(folder, kind, around):
    bare = LanguageTokenizer(folder / "llama").encode("a cat", add_special_tokens=False)
    for bos in (None, True, False):
        for eos in (None, True, False):
            ids = LanguageTokenizer(folder / "llama", kind, add_bos_token=bos, add_eos_token=eos).encode(
                "a cat"
            )
            expected = [around[0] if bos is None else bos, around[1] if eos is None else eos]
            assert ids == [1] * expected[0] + bare + [2] * expected[1]


def test_files_beside_the_vocabulary_are_read(copy):
    path = copy(
        "llama",
        tokenizer_config={
            "add_bos_token": False,
            "add_eos_token": True,
            "pad_token": "</s>",
            "eos_token": {"content": "<end>", "lstrip": False},
            "added_tokens_decoder": {
                "500": {"content": "<end>", "special": True},
                "501": {"content": "<word>", "special": False},
            },
        },
        special_tokens_map={"pad_token": "<s>", "bos_token": {"content": "<s>"}},
    )
    made = LanguageTokenizer(path)
    assert (made.eos_token_id, made.pad_token_id, made.bos_token_id, len(made)) == (500, 2, 1, 502)
    ids = made.encode("a<word>cat")
    assert ids[-1] == 500 and 501 in ids and made.decode(ids) == "a<word> cat"
    # what is said wins
    assert LanguageTokenizer(path, add_eos_token=False, pad_token="<unk>").pad_token_id == 0


def test_added_tokens_json(copy):
    made = LanguageTokenizer(copy("llama", added_tokens={"<img>": 420, "<img2>": 421}))
    ids = made.encode("<img2><img>", add_special_tokens=False)
    assert ids == [421, 420] and made.decode(ids) == "<img2><img>"


def test_pad_is_appended_as_lavis_appends_it_to_vicuna(folder, llama):
    made = LanguageTokenizer(
        folder / "llama",
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="[PAD]",
        added_tokens=("[PAD]",),
    )
    assert made.pad_token_id == len(llama) and len(made) == len(llama) + 1
    assert made.encode("a cat") == [2, *llama.encode("a cat")[1:]]
    assert made("a", max_length=4, padding="max_length")["input_ids"][-1] == len(llama)


def test_a_pad_token_that_is_not_there_is_the_unknown_one(folder, opt):
    """MindFormers' files say <pad> for a Llama, which has none: id 0."""
    assert LanguageTokenizer(folder / "llama", pad_token="<pad>").pad_token_id == 0
    assert LanguageTokenizer(folder / "gpt2", "GPT2Tokenizer", pad_token="<pad>").pad_token_id == 1


# ------------------------------------------------------------------------------------------------ the configu
def test_a_configuration_names_its_tokenizer(folder, llama, opt):
    made = load_tokenizer(
        TokenizerConfig(
            type="LlamaTokenizer", vocab_file=str(folder / "llama" / "tokenizer.model"), max_length=7
        )
    )
    assert made.encode("a cat") == llama.encode("a cat") and made.max_length == 7
    made = load_tokenizer(TokenizerConfig(type="GPT2Tokenizer", checkpoint_name_or_path=str(folder / "gpt2")))
    assert made.encode("a cat") == opt.encode("a cat")
    assert isinstance(load_tokenizer(TokenizerConfig()), BertTokenizer)


def test_the_keys_of_mindformers(folder, llama):
    keys = {
        "type": "LlamaTokenizer",
        "unk_token": "</s>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "vocab_file": str(folder / "llama" / "tokenizer.model"),
        "add_special_tokens": False,
    }
    bare = llama.encode("a cat", add_special_tokens=False)
    assert load_tokenizer(TokenizerConfig(**keys)).encode("a cat") == bare
    assert load_tokenizer(TokenizerConfig(**keys, add_bos_token=False, add_eos_token=True)).encode(
        "a cat"
    ) == [*bare, 2]


def test_a_file_shipped_with_mindblip2_is_found_by_its_name(folder, monkeypatch):
    from mindblip2.data.text import tokenizer_files

    monkeypatch.setattr(tokenizer_files, "ASSETS", folder / "llama")
    assert load_tokenizer(TokenizerConfig(type="LlamaTokenizer", vocab_file="tokenizer.model")).encode("a")


# ------------------------------------------------------------------------------------------------ ways to fai
@pytest.mark.parametrize(
    "kind, words",
    [
        ("LlamaTokenizer", "tokenizer.model or tokenizer.json of the language model .Llama, Vicuna"),
        ("BaichuanTokenizer", "tokenizer.model of the language model .Baichuan"),
        ("GPT2Tokenizer", "tokenizer.json or vocab.json .*OPT"),
    ],
)
def test_a_missing_file_says_what_to_get_and_where_to_put_it(kind, words, tmp_path):
    with pytest.raises(
        ValueError,
        match=f"{kind} needs .* vocab_file is empty: .*download {words}.*processor.tokenizer.vocab_file",
    ):
        load_tokenizer(TokenizerConfig(type=kind))
    with pytest.raises(FileNotFoundError, match=f"no tokenizer file .*none.model: download {words}"):
        LanguageTokenizer(tmp_path / "none.model", kind)
    with pytest.raises(FileNotFoundError, match=f"holds no tokenizer.*: download {words}"):
        LanguageTokenizer(tmp_path, kind)


def test_merges_must_lie_beside_the_vocabulary(folder, tmp_path):
    (tmp_path / "vocab.json").write_bytes((folder / "gpt2" / "vocab.json").read_bytes())
    with pytest.raises(FileNotFoundError, match="vocab.json needs .*merges.txt beside it"):
        LanguageTokenizer(tmp_path, "GPT2Tokenizer")


@pytest.mark.parametrize(
    "name, content, words",
    [
        (
            "tokenizer.model",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
            "a Git LFS pointer; run `git lfs pull`",
        ),
        ("tokenizer.model", b"\x00" * 99, "not a sentencepiece model .99 bytes"),
        ("tokenizer.json", b"{]", "not a JSON file"),
        (
            "tokenizer.json",
            b'{"version": "1.0"}',
            "not a tokenizer.json that the tokenizers library can read",
        ),
    ],
)
def test_files_of_another_format(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        LanguageTokenizer(tmp_path / name)


def test_without_sentencepiece_the_error_says_how_to_install_it(folder, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r"pip install 'mindblip2\[llm\]'"):
        LanguageTokenizer(folder / "llama")
    assert LanguageTokenizer(folder / "gpt2", "GPT2Tokenizer").encode("a")


@pytest.mark.parametrize("more", [0, 1, 127])
def test_a_model_may_have_a_vocabulary_rounded_up(llama, more):
    llama.check_vocabulary(len(llama) + more)


@pytest.mark.parametrize("more", [-1, 128, 32000])
def test_a_tokenizer_of_another_model_is_an_error(llama, more):
    with pytest.raises(
        ValueError, match=f"has {len(llama)} tokens, but Llama has a vocabulary of {len(llama) + more}"
    ):
        llama.check_vocabulary(len(llama) + more, "Llama")


def test_other_errors(folder, llama):
    with pytest.raises(ValueError, match="bos_token = '.DEC.' is not in the vocabulary of .* added_tokens"):
        LanguageTokenizer(folder / "llama", bos_token="[DEC]")
    with pytest.raises(ValueError, match="tokenizer.type = 'LamaTokenizer'; did you mean 'LlamaTokenizer'"):
        load_tokenizer(TokenizerConfig(type="LamaTokenizer"))
    with pytest.raises(ValueError, match=f"id 99999 lies outside the vocabulary of {len(llama)}"):
        llama.decode([5, 99999])
    with pytest.raises(ValueError, match="padding_side = 'middle'"):
        llama("a", padding_side="middle")
    with pytest.raises(ValueError, match="truncation_side = 'middle'"):
        llama("a", truncation_side="middle")
    with pytest.raises(ValueError, match="max_length = 0"):
        llama("a", max_length=0)
    with pytest.raises(TypeError, match="text must be a string"):
        llama(3)


# ------------------------------------------------------------------------------------------------ damage
@pytest.mark.parametrize(
    "name, content, words",
    [
        ("tokenizer_config.json", "[1]", "tokenizer_config.json .*it holds a list, expected an object"),
        (
            "tokenizer_config.json",
            '{"bos_token": 5}',
            "tokenizer_config.json: bos_token is a int, expected a text",
        ),
        (
            "tokenizer_config.json",
            '{"bos_token": {"text": "<s>"}}',
            "tokenizer_config.json: bos_token is a dict",
        ),
        (
            "tokenizer_config.json",
            '{"add_bos_token": "yes"}',
            "add_bos_token is a str, expected true or false",
        ),
        ("tokenizer_config.json", '{"added_tokens_decoder": [1]}', "added_tokens_decoder is a list"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"x": {"content": "<y>"}}}',
            "the id of '<y>' is 'x', expected a whole number",
        ),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"1": "<y>"}}',
            r"added_tokens_decoder\[1\] is not",
        ),
        ("tokenizer_config.json", "[" * 100_000, "nested too deeply"),
        ("tokenizer_config.json", '{"a', "Unterminated string"),
        ("special_tokens_map.json", '{"eos_token": [1]}', "special_tokens_map.json: eos_token is a list"),
        (
            "added_tokens.json",
            '{"<y>": "a"}',
            "added_tokens.json: the id of '<y>' is 'a', expected a whole number",
        ),
        ("added_tokens.json", '{"<y>": 1099511627776}', "the id of '<y>' is '1099511627776'"),
        ("merges.txt", b"\xff\xfe\x00", "merges.txt is not a list of merges: byte 0 is not UTF-8"),
        ("merges.txt", "a b c d\n", "merges.txt is not the list of merges of vocab.json"),
        ("merges.txt", "qqqq zzzz\n", "merges.txt is not the list"),
        ("vocab.json", "[" * 100_000, "vocab.json .*nested too deeply"),
        ("vocab.json", b"\x80", "vocab.json .*not UTF-8"),
    ],
)
def test_b12_damage_of_a_tokenizer_names_the_file(copy, name, content, words):
    path = copy("gpt2")
    assert len(LanguageTokenizer(path, "GPT2Tokenizer")) > 99  # the control
    (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FileError, match=words) as error:
        LanguageTokenizer(path, "GPT2Tokenizer")
    assert str(path / name) in str(error.value) and "\n" not in str(error.value)


def test_b12_an_added_token_with_another_id_than_it_gets_is_an_error(copy):
    """The tokenizers library gives the next id, whatever the file says: the model's row of it would be
    another token's."""
    size = len(LanguageTokenizer(copy("gpt2"), "GPT2Tokenizer"))
    tokenizer = LanguageTokenizer(copy("gpt2", added_tokens={"<y>": size}), "GPT2Tokenizer")
    assert tokenizer.convert_tokens_to_ids("<y>") == size
    with pytest.raises(
        FileError, match=f"'<y>' has id {size + 5} in the files beside .*, but {size} in the vocabulary"
    ):
        LanguageTokenizer(copy("gpt2", added_tokens={"<y>": size + 5}), "GPT2Tokenizer")


def test_b12_a_vocab_txt_that_is_not_utf_8(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("[PAD]\n[UNK]\n[CLS]\n[SEP]\n红\n".encode("gbk"))
    with pytest.raises(FileError, match="vocab.txt is not a BERT vocabulary: byte 24 is not UTF-8"):
        BertTokenizer(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n猫\n", encoding="utf-8")
    assert len(BertTokenizer(tmp_path / "vocab.txt")) == 6


# ------------------------------------------------------------------------------------------------ A1
def test_a1_a_tokenizer_is_found_by_checkpoint_name_or_path(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MINDBLIP2_CACHE", str(tmp_path))
    shutil.copytree(folder / "gpt2", tmp_path / "opt_2_7b")
    by_name = load_tokenizer(TokenizerConfig(type="GPT2Tokenizer", checkpoint_name_or_path="opt_2_7b"))
    assert by_name.vocab_file.parent == tmp_path / "opt_2_7b"
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\ncat\n")
    for name in ("words", str(tmp_path / "words"), str(tmp_path / "words" / "vocab.txt")):
        assert len(load_tokenizer(TokenizerConfig(checkpoint_name_or_path=name))) == 6
    # MindFormers' name
    assert len(load_tokenizer(TokenizerConfig(checkpoint_name_or_path="bert_base_uncased"))) == 30523
    given = TokenizerConfig(
        vocab_file=str(tmp_path / "words" / "vocab.txt"), checkpoint_name_or_path="nowhere"
    )
    assert len(load_tokenizer(given)) == 6  # named as without effect, see tests/config/test_keys.py


@pytest.mark.parametrize(
    "kind", ["BertTokenizer", "LlamaTokenizer", "GPT2Tokenizer", "PreTrainedTokenizerFast"]
)
def test_a1_a_tokenizer_that_is_not_there_names_the_key(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("MINDBLIP2_CACHE", str(tmp_path))
    with pytest.raises(
        FileNotFoundError,
        match=f"processor.tokenizer.checkpoint_name_or_path = 'nowhere': .*{tmp_path}/nowhere",
    ):
        load_tokenizer(TokenizerConfig(type=kind, checkpoint_name_or_path="nowhere"))
