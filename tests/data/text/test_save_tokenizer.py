"""A tokenizer that was saved is the same when it is loaded from there."""

import json

import pytest

from mindblip2.data.text.language_tokenizer import LanguageTokenizer
from mindblip2.data.text.tokenizer import BertTokenizer, load_tokenizer, save_tokenizer

TEXTS = ["a photo of a red cat", "一只红色的猫", "two birds! [PAD] </s> <s>", "Question: what? Short answer:"]


def reloaded(tokenizer, folder):
    config = save_tokenizer(tokenizer, folder)
    assert "/" not in config.vocab_file
    return load_tokenizer(config.replace(vocab_file=str(folder / config.vocab_file)))


def same(one, other):
    facts = [
        (
            len(each),
            each.max_length,
            each.all_special_ids,
            each.pad_token_id,
            each.bos_token_id,
            each.unk_token_id,
        )
        for each in (one, other)
    ]
    ids = [[each(text, padding=False)["input_ids"] for text in TEXTS] for each in (one, other)]
    return (
        facts[0] == facts[1]
        and ids[0] == ids[1]
        and [one.decode(row) for row in ids[0]] == [other.decode(row) for row in ids[1]]
    )


@pytest.mark.parametrize("vocab_file", [None, "digits_vocab.txt"])
def test_bert(vocab_file, tmp_path):
    tokenizer = BertTokenizer(vocab_file, 9)
    assert same(tokenizer, reloaded(tokenizer, tmp_path)) and not same(
        tokenizer, BertTokenizer(vocab_file, 8)
    )


@pytest.mark.parametrize(
    "name, options",
    [
        ("llama", {}),
        ("llama", {"pad_token": "[PAD]", "added_tokens": ("[PAD]",), "bos_token": "</s>"}),
        ("llama", {"add_eos_token": True}),
        ("gpt2", {"kind": "GPT2Tokenizer"}),
        ("gpt2", {"kind": "GPT2Tokenizer", "add_bos_token": False, "max_length": 6}),
    ],
    ids=str,
)
def test_language_models(name, options, folder, tmp_path):
    tokenizer = LanguageTokenizer(folder / name, **options)
    again = reloaded(tokenizer, tmp_path)
    assert same(tokenizer, again) and again.vocab_file.parent == tmp_path
    other = LanguageTokenizer(
        folder / name, options.get("kind", "LlamaTokenizer"), max_length=5, add_eos_token=False
    )
    assert not same(tokenizer, other)  # the control


def test_what_lies_beside_the_vocabulary_goes_along(copy, tmp_path_factory):
    source = copy(
        "llama",
        tokenizer_config={
            "legacy": False,
            "add_bos_token": False,
            "added_tokens_decoder": {"420": {"content": "<image>", "special": True}},
        },
        special_tokens_map={"pad_token": "</s>"},
    )
    tokenizer, target = LanguageTokenizer(source), tmp_path_factory.mktemp("saved")
    again = reloaded(tokenizer, target)
    assert (
        same(tokenizer, again) and again.convert_tokens_to_ids("<image>") == 420 and again.pad_token == "</s>"
    )
    text = "a <image> b"  # "legacy": only the first piece gets a space in front
    assert tokenizer.encode(text) == again.encode(text)
    (target / "tokenizer_config.json").unlink()
    assert not same(tokenizer, LanguageTokenizer(target))  # the control


def test_a_tokenizer_that_lies_there_stays(copy, folder):
    source = copy("gpt2")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    assert save_tokenizer(LanguageTokenizer(source, "GPT2Tokenizer"), source).vocab_file == "vocab.json"
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    (source / "added_tokens.json").write_text(json.dumps({"x": 9}))
    with pytest.raises(
        FileExistsError,
        match="holds added_tokens.json, which is not of the tokenizer .*tokenizer.model, but would",
    ):
        LanguageTokenizer(folder / "llama").save(source)
