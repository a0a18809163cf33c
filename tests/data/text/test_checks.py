"""What a tokenizer does not know and what is cut off is counted and said."""

import logging

import numpy as np
import pytest

from mindblip2.data.processor import Blip2Processor
from mindblip2.data.text.checks import UnknownCount, cleaned, known, split_labels, unknown_id, warn_truncated
from mindblip2.data.text.cleaning import BlipCaption
from mindblip2.data.text.language_tokenizer import LanguageTokenizer
from mindblip2.data.text.tokenizer import BertTokenizer


@pytest.fixture(scope="module")
def bert():
    return BertTokenizer()


@pytest.fixture(scope="module")
def digits():
    return BertTokenizer("digits_vocab.txt")


def test_a8_unknown_tokens_are_counted_with_their_words(bert, digits):
    assert known(bert, "a red cat") == (3, 0, ())
    assert known(digits, "a red cat, a red seven") == (7, 1, ("cat,",))
    count = known(bert, "一只红色的猫 runs")
    assert count.unknown > 1 and count.words == ("一只红色的猫",) and count.tokens == 7


def test_a8_a_vocabulary_of_bytes_has_no_unknown_token(llama, opt, copy):
    """Byte fallback and byte-level BPE write everything; a model without them has an unknown token."""
    assert unknown_id(llama) is None and unknown_id(opt) is None
    assert known(llama, "\U00013001 猫").unknown == known(opt, "\U00013001 猫").unknown == 0
    from tokenizers import Tokenizer, models, pre_tokenizers

    library = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "<s>": 2, "seven": 3}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = copy("gpt2")
    library.save(str(folder / "tokenizer.json"))
    words = LanguageTokenizer(folder / "tokenizer.json", "PreTrainedTokenizerFast")
    assert unknown_id(words) == 0 and known(words, "seven lorries seven") == (3, 1, ("lorries",))


def test_a8_training_warns_once_of_unknown_tokens(digits, caplog):
    def count(*captions, enough=4):
        caplog.clear()
        counter = UnknownCount(digits, enough=enough)
        for caption in captions:
            row = digits([caption], max_length=8, return_tensors="np")
            counter.add(row["input_ids"], row["attention_mask"].sum(1))
        counter.end()
        return caplog.text

    assert "of the first 4 captions" in count(*["lorry bus"] * 4, *["one"] * 9)
    # the data ended before there were enough
    assert "of the first 2 captions" in count(*["lorry bus"] * 2)
    assert count(*["a red seven"] * 9) == ""
    assert count(*["one two three four five six"] * 40, "one lorry", enough=41) == ""  # 1 of some 300


def test_a10_texts_that_are_cut_are_counted(bert, caplog):
    texts = ["a cat", "one two three four five six", "one two three four five seven"]
    encoded = bert(texts, max_length=6, return_tensors="np")
    assert warn_truncated(bert, texts, encoded["attention_mask"], 6, "max_length") == 2
    assert (
        "2 of 3 texts have more than 6 tokens and lose their end" in caplog.text
        and "'one two three four five six'" in caplog.text
    )
    np.testing.assert_array_equal(encoded["input_ids"][1], encoded["input_ids"][2])  # which is why
    caplog.clear()
    # as many as there is room for: nothing is lost
    full = bert(["one two three four"], max_length=6, return_tensors="np")
    assert (
        warn_truncated(bert, ["one two three four"], full["attention_mask"], 6, "max_length") == 0
        and caplog.text == ""
    )


def test_a10_words_beyond_max_words_are_counted(caplog):
    assert (
        cleaned(["One, two!", "three"], BlipCaption("a ", 2)) == ["a one, two", "a three"]
        and caplog.text == ""
    )
    assert cleaned(["One two three"], BlipCaption("", 2)) == ["one two"]
    assert "1 of 1 texts have more than 2 words and lose their end: 'One two three'" in caplog.text
    with pytest.raises(ValueError, match=r"nothing is left of '\.\.\.!'"):
        cleaned(["one", "...!"], BlipCaption())


def test_a10_the_processor_cleans_captions_and_leaves_prompts(llama, caplog):
    """LAVIS: captions before features are cleaned, a language model's prompts are not."""
    caption, prompt = Blip2Processor(), Blip2Processor(tokenizer=llama)

    def ids(processor, text, **options):
        return processor(text=text, return_tensors="np", **options)["input_ids"].tolist()

    asked = "Question: how many?"
    assert (
        ids(caption, asked) == ids(caption, "question how many?") != ids(Blip2Processor(clean=False), asked)
    )
    assert ids(Blip2Processor(clean=False), asked) == BertTokenizer()([asked])["input_ids"]
    assert ids(prompt, "Question: a cat!") == llama(["Question: a cat!"], padding="max_length")["input_ids"]
    with caplog.at_level(logging.WARNING, "mindblip2"):
        ids(caption, ["one", "one two three four"], max_length=5)
    assert "1 of 2 texts have more than 5 tokens and lose their end" in caplog.text


def test_a10_whether_texts_are_cleaned_is_saved(tmp_path):
    Blip2Processor(clean=False).save_pretrained(tmp_path)
    assert Blip2Processor.from_pretrained(tmp_path).clean is False
    Blip2Processor().save_pretrained(tmp_path)
    assert Blip2Processor.from_pretrained(tmp_path).cleans is True


def test_a8_labels_in_one_string():
    assert (
        split_labels("seven, one") == ["seven", "one"]
        and split_labels(["a, b"]) == ["a, b"]
        and split_labels(None) == []
    )
