"""Ids and text of language models' tokenizers equal those of sentencepiece and transformers on the same
files."""

import pickle

import numpy as np
import pytest

from mindblip2.data.text.language_tokenizer import LanguageTokenizer
from tests.data.conftest import LINES

TEXTS = [
    *LINES,
    "",
    " ",
    "a",
    " a cat",
    "a  cat ",
    "12 cats",
    "###问题：\n详细描述图片内容。\n\n###答案：",
    "a 🐟 and 鱼",
    "tab\tnew\nline",
    "naïve Ünïcode ｆｕｌｌ",
    "￿ é",
    "it's o'clock, don't!",
]


@pytest.fixture(scope="module")
def pieces(folder):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "llama" / "tokenizer.model"))


# ------------------------------------------------------------------------------------------------ sentencepie
def test_ids_are_those_of_sentencepiece_with_bos_in_front(llama, pieces):
    for text in TEXTS:
        assert llama.encode(text) == [1, *pieces.encode(text)]
        assert llama.encode(text, add_special_tokens=False) == pieces.encode(text)
    assert (llama.bos_token_id, llama.eos_token_id, llama.unk_token_id, llama.pad_token_id) == (1, 2, 0, 0)
    assert len(llama) == llama.vocab_size == len(pieces) and llama.all_special_ids == {0, 1, 2}


def test_text_comes_back(llama, opt):
    for text in TEXTS:
        assert llama.decode(llama.encode(text)) == text
        plain = text if "'" in text else text.replace(" !", "!")
        assert opt.decode(opt.encode(text)) == plain


def test_bytes_stand_for_what_the_vocabulary_lacks(llama):
    ids = llama.encode("🐟", add_special_tokens=False)
    assert llama.convert_ids_to_tokens(ids) == ["▁", "<0xF0>", "<0x9F>", "<0x90>", "<0x9F>"]
    assert llama.decode(ids[:3]) == "\ufffd" * 2  # a caption that ends within a character
    assert 0 not in llama.encode("".join(TEXTS))


@pytest.mark.parametrize("legacy", [True, False])
def test_ids_are_those_of_transformers(copy, legacy):
    """Its LlamaTokenizer makes a tokenizer of its own from the same file; special tokens in the text are
    found by both.  Where a text begins with a space it puts none in front, unlike sentencepiece; see the test
    above."""
    transformers = pytest.importorskip("transformers")
    path = copy("llama", tokenizer_config={"legacy": legacy, "add_bos_token": True})
    theirs = transformers.LlamaTokenizer.from_pretrained(str(path), legacy=legacy)
    ours = LanguageTokenizer(path)
    more = [
        "a cat</s>a dog",
        "a</s>cat</s></s>dog <unk>",
        *([] if legacy else ["<s>a cat", "a</s> cat</s></s>  dog <unk>"]),
    ]
    for text in [*(text for text in TEXTS if text[:1] != " "), *more]:
        assert ours.encode(text) == theirs.encode(text), text
        ids = theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_legacy_spaces_would_be_noticed(copy):
    path = copy("llama", tokenizer_config={"legacy": False})
    new, old = LanguageTokenizer(path), LanguageTokenizer(copy("llama", tokenizer_config={}))
    assert new.encode("a cat</s>a dog") != old.encode("a cat</s>a dog") and new.encode("a cat") == old.encode(
        "a cat"
    )


def test_special_tokens_can_be_shown(llama):
    ids = [
        1,
        *llama.encode("a cat", add_special_tokens=False),
        2,
        *llama.encode("a dog", add_special_tokens=False),
        0,
    ]
    assert llama.decode(ids, skip_special_tokens=False) == "<s> a cat</s> a dog<unk>"
    assert llama.decode(ids) == "a cat a dog"


# ------------------------------------------------------------------------------------------------ byte-level
def test_opt_is_that_of_transformers(folder, opt):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2Tokenizer.from_pretrained(
        str(folder / "gpt2"), bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>"
    )
    for text in [*TEXTS, "a cat</s>a dog", "a cat\n"]:
        assert opt.encode(text) == [2, *theirs.encode(text)]
        ids = theirs.encode(text)
        assert opt.decode(ids) == theirs.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=True
        )
    assert (opt.bos_token_id, opt.eos_token_id, opt.unk_token_id, opt.pad_token_id) == (2, 2, 2, 1)
    # LAVIS's end of a caption
    assert opt.encode("\n", add_special_tokens=False) == [opt.convert_tokens_to_ids("Ċ")]


def test_opt_decodes_with_joins_as_lavis_and_llama_without(opt, llama, copy):
    assert opt.decode(opt.encode("a cat , a dog .")) == "a cat, a dog."
    assert llama.decode(llama.encode("a cat , a dog .")) == "a cat , a dog ."
    plain = LanguageTokenizer(
        copy("gpt2", tokenizer_config={"clean_up_tokenization_spaces": False}), "GPT2Tokenizer"
    )
    assert plain.decode(plain.encode("a cat , a dog .")) == "a cat , a dog ."


def test_the_same_vocabulary_as_tokenizer_json(folder, opt, tmp_path):
    """What is around a text is read off the file's post-processor."""
    from tokenizers import Tokenizer, processors

    made = Tokenizer.from_str(opt._vocabulary.library.to_str())
    made.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    made.enable_padding(length=50)
    made.enable_truncation(max_length=2)
    made.save(str(tmp_path / "tokenizer.json"))
    for kind in ("GPT2Tokenizer", "PreTrainedTokenizerFast"):
        again = LanguageTokenizer(tmp_path / "tokenizer.json", kind, bos_token="</s>")
        assert [again.encode(text) for text in TEXTS] == [opt.encode(text) for text in TEXTS]
        assert again.all_special_ids >= {2}
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    made.save(str(tmp_path / "tokenizer.json"))
    last = LanguageTokenizer(tmp_path / "tokenizer.json", "PreTrainedTokenizerFast")
    assert last.encode("a cat") == [*opt.encode("a cat")[1:], 2]


def test_transformers_reads_the_same_tokenizer_json(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.LlamaTokenizer.from_pretrained(str(folder / "llama")).save_pretrained(str(tmp_path))
    ours, model = LanguageTokenizer(tmp_path / "tokenizer.json"), LanguageTokenizer(folder / "llama")
    for text in (text for text in TEXTS if text[:1] != " "):
        assert ours.encode(text) == model.encode(text) and ours.decode(ours.encode(text)) == text
    assert ours.pad_token_id == 0 and len(ours) == len(model)


# ------------------------------------------------------------------------------------------------ rows
def test_padding_on_either_side(llama):
    texts = ["a cat", "a red cat on the table"]
    short, long = (llama.encode(text) for text in texts)
    rest = [0] * (len(long) - len(short))
    for side, ids, mask in (
        ("right", short + rest, [1] * len(short) + rest),
        ("left", rest + short, rest + [1] * len(short)),
    ):
        batch = llama(texts, padding_side=side, return_tensors="np")
        assert batch["input_ids"].tolist() == [ids, long] and batch["attention_mask"][0].tolist() == mask
        assert batch["input_ids"].dtype == batch["attention_mask"].dtype == np.int32
    assert len(llama("a cat", padding="max_length")["input_ids"]) == 32
    assert llama(texts, padding=False)["input_ids"] == [short, long]


def test_truncation_on_either_side_keeps_bos_and_eos(folder):
    made = LanguageTokenizer(folder / "llama", add_eos_token=True)
    bare = made.encode("a red cat on the table", add_special_tokens=False)
    for side, kept in (("right", bare[:3]), ("left", bare[-3:])):
        assert made("a red cat on the table", max_length=5, truncation_side=side)["input_ids"] == [
            1,
            *kept,
            2,
        ]
    assert made("a red cat on the table", max_length=2)["input_ids"] == [1, 2]
    assert made("a red cat on the table", max_length=5, truncation=False)["input_ids"] == [1, *bare, 2]
    assert made("a red cat on the table", max_length=3, add_special_tokens=False)["input_ids"] == bare[:3]


def test_batches_and_types(llama):
    import mindspore as ms

    ids = llama(["a cat", "一只猫"], return_tensors="ms")["input_ids"]
    assert ids.dtype == ms.int32 and llama.batch_decode(ids) == ["a cat", "一只猫"]
    assert llama.batch_decode(ids.asnumpy().tolist()) == ["a cat", "一只猫"]
    assert llama(("a cat",)) == llama(np.array(["a cat"])) and isinstance(llama("a cat")["input_ids"][0], int)
    assert llama(np.array("a cat")) == llama("a cat") and llama("a \ud83d cat") == llama("a  cat")


def test_tokenizers_can_be_sent_to_worker_processes(llama, opt):
    for made in (llama, opt):
        assert pickle.loads(pickle.dumps(made))(TEXTS) == made(TEXTS)
