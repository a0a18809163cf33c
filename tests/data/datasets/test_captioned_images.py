"""Samples of any form become flat lists; what would spoil an evaluation is named before it starts."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mindblip2.data.datasets.captioned_images import check_readable, pictures_and_texts


def test_ragged_captions_become_flat_lists_with_owners():
    samples = [
        {"image": "a.png", "captions": ["A red dog.", "two dogs"]},
        {"image": "b.png", "caption": "A CAT!", "image_id": 7},
        SimpleNamespace(path="c.png", captions=("one", "two", "three"), image_id=np.int32(8)),
    ]
    pictures, texts, owners = pictures_and_texts(samples)
    assert pictures == ["a.png", "b.png", "c.png"]
    assert texts == ["a red dog", "two dogs", "a cat", "one", "two", "three"]  # cleaned as for training
    assert owners.tolist() == [0, 0, 1, 2, 2, 2]
    assert pictures_and_texts(samples[:1], prompt="a photo of ", max_words=1)[1] == [
        "a photo of a",
        "a photo of two",
    ]


def test_arrays_and_pictures_are_pictures():
    array = np.zeros((4, 4, 3), np.uint8)
    pictures, _, owners = pictures_and_texts(
        [{"image": array, "caption": "x"}, {"image": Image.fromarray(array), "caption": "y"}]
    )
    assert pictures[0] is array and owners.tolist() == [0, 1]


@pytest.mark.parametrize(
    "samples, words",
    [
        ([], "no samples"),
        ([{"image": "a.png", "captions": []}], "sample 0 has no caption"),
        ([{"caption": "x"}], "sample 0 has no picture"),
        (
            [{"image": "a.png", "caption": "x"}, {"image": "a.png", "caption": "y"}],
            r"samples 0 and 1 are the same picture \(file a.png\)",
        ),
        (
            [
                {"image": "a.png", "caption": "x", "image_id": 3},
                {"image": "b.png", "caption": "y", "image_id": 3},
            ],
            "image_id 3",
        ),
        ([{"image": "a.png", "captions": ["x", "!!"]}], "nothing is left of the caption '!!'"),
    ],
)
def test_samples_that_would_spoil_the_figures_are_refused(samples, words):
    with pytest.raises(ValueError, match=words):
        pictures_and_texts(samples)


def test_every_unreadable_file_is_named(tmp_path):
    whole, torn = tmp_path / "whole.png", tmp_path / "torn.png"
    Image.effect_noise((64, 64), 90).save(whole)
    torn.write_bytes(whole.read_bytes()[:1500])
    check_readable([whole, Image.new("RGB", (2, 2)), np.zeros((2, 2, 3), np.uint8)])
    with pytest.raises(ValueError, match=r"(?s)3 pictures were looked at.*torn.png.*nowhere.png"):
        check_readable([whole, torn, str(tmp_path / "nowhere.png")])
    with pytest.raises(ValueError, match="and 2 more"):
        check_readable([torn] * 7)
