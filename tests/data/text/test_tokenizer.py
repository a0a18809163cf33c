"""Ids, masks and decoded text equal those of LAVIS's BertTokenizer."""

import hashlib
import pickle
import threading

import numpy as np
import pytest

from mindblip2.data.text.tokenizer import VOCAB_FILE, BertTokenizer
from mindblip2.file_io import FileError

SMALL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "##s", "red", ","]


@pytest.fixture(scope="module")
def tokenizer():
    return BertTokenizer()


@pytest.fixture
def write(tmp_path):
    def written(words, end="\n"):
        path = tmp_path / "words.txt"
        path.write_bytes("".join(word + end for word in words).encode())
        return path

    return written


def test_the_shipped_vocabulary_is_bert_base_uncased(lavis_text):
    assert hashlib.sha256(VOCAB_FILE.read_bytes()).hexdigest() == lavis_text["vocab_sha256"]
    assert "Apache License, Version 2.0" in (VOCAB_FILE.parent / "NOTICE").read_text()


def test_sizes_and_special_ids(tokenizer, lavis_text):
    assert (
        (len(tokenizer), tokenizer.vocab_size)
        == (lavis_text["len"], lavis_text["vocab_size"])
        == (30523, 30522)
    )
    for name, number in lavis_text["special"].items():
        assert getattr(tokenizer, f"{name}_token_id") == number
    assert tokenizer.bos_token_id == 30522 and tokenizer.all_special_ids == {0, 100, 101, 102, 103, 30522}


def test_every_caption_of_lavis(tokenizer, lavis_text):
    for case in lavis_text["captions"]:
        caption = case["caption"]
        assert tokenizer(caption) == case["max_length_32"]
        assert tokenizer(caption, max_length=35)["input_ids"] == case["max_length_35"]
        for text, key in ((caption, "no_truncation"), (case["raw"], "raw_no_truncation")):
            assert tokenizer(text, padding=False, truncation=False)["input_ids"] == case[key]
        assert tokenizer.convert_ids_to_tokens(case["no_truncation"]) == case["tokens"]
        assert tokenizer.decode(case["no_truncation"]) == case["decoded"]


def test_raw_captions_give_other_ids(tokenizer, lavis_text):
    """Negative control: the tokenizer does not clean; without BlipCaption 9 of the 15 captions differ."""
    assert sum(tokenizer(case["raw"]) != case["max_length_32"] for case in lavis_text["captions"]) == 9


def test_a_batch_is_its_single_rows(tokenizer, lavis_text):
    captions = [case["caption"] for case in lavis_text["captions"]]
    batch = tokenizer(captions)
    assert batch["input_ids"] == [tokenizer(caption)["input_ids"] for caption in captions]
    assert batch["attention_mask"] == [tokenizer(caption)["attention_mask"] for caption in captions]
    assert tokenizer(tuple(captions)) == tokenizer(np.array(captions)) == batch


def test_the_mask_is_where_ids_are_not_padding(tokenizer, lavis_text):
    batch = tokenizer([case["raw"] for case in lavis_text["captions"]], return_tensors="np")
    np.testing.assert_array_equal(batch["attention_mask"], batch["input_ids"] != tokenizer.pad_token_id)


@pytest.mark.parametrize(
    "padding, lengths", [("max_length", [8, 8]), ("longest", [5, 5]), (True, [5, 5]), (False, [3, 5])]
)
def test_padding(tokenizer, padding, lengths):
    batch = tokenizer(["cat", "a red cat"], max_length=8, padding=padding)
    assert (
        [len(row) for row in batch["input_ids"]] == [len(row) for row in batch["attention_mask"]] == lengths
    )
    assert [sum(row) for row in batch["attention_mask"]] == [3, 5]


def test_truncation_keeps_sep(tokenizer):
    assert tokenizer("a red cat", max_length=4)["input_ids"] == [101, 1037, 2417, 102]
    assert tokenizer("a red cat", max_length=2)["input_ids"] == [101, 102]
    assert tokenizer("a red cat", max_length=4, truncation=False)["input_ids"] == [101, 1037, 2417, 4937, 102]
    assert len(BertTokenizer(max_length=5)("word " * 50)["input_ids"]) == 5


def test_return_types(tokenizer):
    import mindspore as ms

    assert isinstance(tokenizer("a cat")["input_ids"], list) and isinstance(
        tokenizer("a cat")["input_ids"][0], int
    )
    assert (
        np.shape(tokenizer("a cat")["input_ids"])
        == np.shape(tokenizer(np.array("a cat"))["input_ids"])
        == (32,)
    )
    assert np.shape(tokenizer(["a cat"])["input_ids"]) == (1, 32)
    for text in ("a cat", ["a cat"]):
        for key in ("input_ids", "attention_mask"):
            array = tokenizer(text, return_tensors="np")[key]
            tensor = tokenizer(text, return_tensors="ms")[key]
            assert array.shape == tensor.shape == (1, 32)
            assert array.dtype == np.int32 and tensor.dtype == ms.int32
            np.testing.assert_array_equal(tensor.asnumpy(), array)


def test_dec_in_raw_text_is_the_token_and_in_a_cleaned_caption_is_not(tokenizer):
    assert tokenizer("[DEC]", padding=False)["input_ids"] == [101, 30522, 102]
    assert tokenizer("[dec]", padding=False)["input_ids"] == [101, 1031, 11703, 1033, 102]


def test_words_of_more_than_100_letters_are_unknown(tokenizer):
    assert len(tokenizer("a" * 100, padding=False, truncation=False)["input_ids"]) > 3
    assert tokenizer("a" * 101, padding=False, truncation=False)["input_ids"] == [101, 100, 102]


def test_half_of_a_utf16_pair_is_dropped(tokenizer):
    assert tokenizer("a \ud83d cat") == tokenizer("a cat")


def test_decode(tokenizer):
    ids = [30522, 1037, 2417, 4937, 102, 0, 0]
    assert tokenizer.decode(ids) == tokenizer.decode(np.array(ids)) == "a red cat"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "[DEC] a red cat [SEP] [PAD] [PAD]"
    assert tokenizer.decode(tokenizer("it's o'clock, don't!")["input_ids"]) == "it's o'clock, don't!"
    assert tokenizer.decode([]) == ""
    assert (
        tokenizer.batch_decode(np.array([ids, ids]))
        == tokenizer.batch_decode([ids, ids[:4]])
        == ["a red cat"] * 2
    )


def test_decode_of_a_tensor(tokenizer):
    from mindspore import Tensor

    assert tokenizer.batch_decode(Tensor(np.array([[1037, 4937]], np.int32))) == ["a cat"]
    assert tokenizer.decode(Tensor(np.array([1037, 4937], np.int32))) == "a cat"


@pytest.mark.parametrize("wrong", [30523, -100, 50265])
def test_ids_outside_the_vocabulary(tokenizer, wrong):
    with pytest.raises(ValueError, match=f"id {wrong} lies outside the vocabulary of 30523"):
        tokenizer.decode([1037, wrong])


# other vocabularies


def test_a_small_vocabulary(write):
    tokenizer = BertTokenizer(write(SMALL), max_length=8)
    assert (len(tokenizer), tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.mask_token_id) == (
        10,
        9,
        9,
        None,
    )
    assert tokenizer("A red Cats, dog")["input_ids"] == [2, 4, 7, 5, 6, 8, 1, 3]
    assert tokenizer.decode([9, 4, 5, 6, 8, 7, 3, 0]) == "a cats, red"


def test_a_vocabulary_that_holds_dec_keeps_its_id(write):
    tokenizer = BertTokenizer(write(["[DEC]"] + SMALL))
    assert (len(tokenizer), tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.pad_token_id) == (
        10,
        10,
        0,
        1,
    )


def test_windows_line_ends_and_byte_order_mark(write):
    assert BertTokenizer(write(SMALL, "\r\n")).words == SMALL
    assert BertTokenizer(write(["\ufeff" + SMALL[0]] + SMALL[1:])).words == SMALL


def test_an_unusual_line_end_is_a_word(write):
    assert BertTokenizer(write(SMALL + ["\u2028", "\x85"])).vocab_size == 11


@pytest.mark.parametrize("empty", [None, ""])
def test_no_file_means_the_shipped_one(empty):
    assert BertTokenizer(empty).vocab_file == VOCAB_FILE


@pytest.mark.parametrize("words", [SMALL, ["[DEC]"] + SMALL])
def test_save_and_load(write, tmp_path, words):
    tokenizer = BertTokenizer(write(words))
    path = tokenizer.save(tmp_path / "new" / "folder")
    assert path.name == "vocab.txt" and path.read_text().splitlines() == words
    again = BertTokenizer(path)
    assert again("a red cats") == tokenizer("a red cats") and again.bos_token_id == tokenizer.bos_token_id


def test_save_of_the_shipped_one_is_byte_equal(tokenizer, tmp_path):
    assert tokenizer.save(tmp_path).read_bytes() == VOCAB_FILE.read_bytes()


def test_worker_processes_and_threads(write):
    """A data loader pickles the tokenizer for its processes, or calls it from several threads."""
    tokenizer = BertTokenizer(write(SMALL), max_length=6)
    assert pickle.loads(pickle.dumps(tokenizer))("a red cat") == tokenizer("a red cat")
    wrong = []

    def work(length):
        wrong.extend(
            1 for _ in range(200) if len(tokenizer("a red cat", max_length=length)["input_ids"]) != length
        )

    threads = [threading.Thread(target=work, args=(length,)) for length in (3, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ways to fail


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no vocabulary file .*none.txt; .*leave vocab_file empty"):
        BertTokenizer(tmp_path / "none.txt")
    with pytest.raises(FileError, match="is a folder, expected a file"):
        BertTokenizer(tmp_path)


@pytest.mark.parametrize("missing", [["[PAD]"], ["[SEP]", "[CLS]"]])
def test_special_tokens_missing_in_the_file(write, missing):
    with pytest.raises(ValueError, match="not a BERT vocabulary: .* missing among its") as error:
        BertTokenizer(write([word for word in SMALL if word not in missing]))
    assert all(word in str(error.value) for word in missing) and "words.txt" in str(error.value)


def test_a_word_twice(write):
    with pytest.raises(ValueError, match="holds 'cat' twice"):
        BertTokenizer(write(SMALL + ["cat"]))


@pytest.mark.parametrize("wrong", [None, 3, b"a cat", ["a cat", None], [["a cat"]], np.array([1])])
def test_what_is_no_string(tokenizer, wrong):
    with pytest.raises(TypeError, match="text must be a string, got"):
        tokenizer(wrong)


@pytest.mark.parametrize("empty", [[], (), np.array([], str)])
def test_empty_list(tokenizer, empty):
    with pytest.raises(ValueError, match="the list is empty"):
        tokenizer(empty)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"padding": "left"}, "padding = 'left': expected"),
        ({"return_tensors": "pt"}, "return_tensors = 'pt': expected"),
        ({"max_length": 1}, "max_length = 1: expected"),
        ({"max_length": "32"}, "max_length = '32': expected"),
        ({"max_length": 0}, "max_length = 0: expected"),
    ],
)
def test_unknown_options(tokenizer, options, words):
    with pytest.raises(ValueError, match=words):
        tokenizer("a cat", **options)


def test_rows_of_unequal_length_make_no_array(tokenizer):
    with pytest.raises(ValueError, match="rows of 3 to 5 tokens make no array; use padding='longest'"):
        tokenizer(["cat", "a red cat"], padding=False, return_tensors="np")
    with pytest.raises(ValueError, match="rows of 4 to 5 tokens"):
        tokenizer(["cat", "a red cat"], max_length=4, truncation=False, return_tensors="np")
