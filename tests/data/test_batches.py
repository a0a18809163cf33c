"""Batches: shapes, the padding that is left out, errors, and the thread that makes them ahead."""
import numpy as np
import pytest

from mindblip2.data.batches import ahead, batches
from mindblip2.data.processor import Blip2Processor


@pytest.fixture(scope="module")
def processor():
    return Blip2Processor.from_pretrained("blip2_digits")


def samples(captions, **more):
    return [{"image": np.full((48, 48, 3), 9 * i, np.uint8), "caption": text, **more} for i, text in enumerate(captions)]


def test_full_batches_of_cleaned_captions_and_a_dropped_rest(processor):
    made = list(batches(samples(["A red seven!", "a (blue) two", "a one"], image_id=4), processor, 2))
    assert len(made) == 1
    assert made[0]["image"].shape == (2, 3, 48, 48) and made[0]["image_id"].tolist() == [4, 4]
    assert processor.tokenizer.batch_decode(made[0]["input_ids"]) == ["a red seven", "a blue two"]


def test_only_padding_is_left_out(processor):
    short, = batches(samples(["a red seven"] * 2), processor, 2)
    long, = batches(samples(["a red seven", "a red seven, a green two and a blue one from left to right"]), processor, 2)
    assert short["input_ids"].shape == (2, 5) and long["input_ids"].shape == (2, 18)
    whole = processor(text=["a red seven"], return_tensors="np")["input_ids"]
    assert (whole[0, :5] == short["input_ids"][0]).all() and not whole[0, 5:].any()


def test_a_sample_without_a_caption_is_named(processor):
    with pytest.raises(ValueError, match="needs 'image' and 'caption', this one has \\['image'\\]"):
        list(batches([{"image": np.zeros((48, 48, 3), np.uint8)}], processor, 1))


def test_ahead_gives_the_same_items_and_raises_what_was_raised():
    assert list(ahead(iter(range(9)), depth=2)) == list(range(9))

    def broken():
        yield 1
        raise KeyError("in the thread")

    made = ahead(broken())
    assert next(made) == 1
    with pytest.raises(KeyError, match="in the thread"):
        next(made)
