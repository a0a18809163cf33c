"""The order in which training shows its scenes, and the two examinations."""
import numpy as np
import pytest

from mindblip2.data import digits, scenes

COLOURED = set(digits.COLOURS)
NAMED = set(digits.DIGITS)


def kinds(samples):
    """Per batch of four the kinds of its captions, as (names a colour, names a digit)."""
    words = [set(sample["caption"].split()) for sample in samples]
    found = [(bool(w & COLOURED), bool(w & NAMED)) for w in words]
    return [set(found[i:i + 4]) for i in range(0, len(found), 4)]


@pytest.fixture(scope="module")
def passes():
    samples = scenes.TrainingScenes(120, 7, property_passes=2, batch=4)
    assert len(samples) == 120
    return [list(samples.epoch(number)) for number in range(4)]


def test_a_batch_has_one_kind_of_caption(passes):
    assert all(len(batch) == 1 for samples in passes for batch in kinds(samples))


def test_captions_begin_with_one_property_and_come_to_both(passes):
    digit, colour, both = (False, True), (True, False), (True, True)
    seen = [{kind for batch in kinds(samples) for kind in batch} for samples in passes]
    assert seen == [{digit, colour}] * 2 + [{digit, both}] * 2


def test_scenes_begin_with_one_digit(passes):
    longest = [max(len(sample["caption"].split()) for sample in samples) for samples in passes]
    assert longest[:2] == [3, 3] and min(longest[2:]) > 10


def test_passes_differ_and_a_seed_repeats_them(passes):
    again, other = (next(scenes.TrainingScenes(120, seed, 2, batch=4).epoch(0)) for seed in (7, 8))
    assert np.array_equal(again["image"], passes[0][0]["image"]) and again["caption"] == passes[0][0]["caption"]
    assert not np.array_equal(other["image"], again["image"])
    assert not np.array_equal(passes[0][0]["image"], passes[1][0]["image"])


def test_no_scenes_is_an_error():
    with pytest.raises(ValueError, match="train_dataset.data_loader.scenes = 0"):
        scenes.TrainingScenes(0, 1)


@pytest.fixture(scope="module")
def sets():
    return scenes.labelled_sets()


def test_each_held_out_scan_is_asked_for_once_in_each_set(sets):
    held_out = sum(len(scans) for scans in digits.split()["test"])
    assert [len(data.pictures) for data in sets] == [held_out, held_out] == [len(data.truths) for data in sets]
    assert [len(data.labels) for data in sets] == [10, 80]


def test_the_pairs_asked_for_are_the_unseen_ones_among_all(sets):
    def name(digit, colour):
        return digits.caption(digits.Scene((digit,), (colour,), (0,), "black"))
    assert set(sets[1].truths) == {name(*pair) for pair in digits.UNSEEN_PAIRS}
    assert set(sets[1].labels) == {name(*pair) for pair in digits.UNSEEN_PAIRS + digits.SEEN_PAIRS}


def test_drawn_pictures_are_named_after_what_they_show(tmp_path):
    from PIL import Image
    paths = scenes.draw(tmp_path)
    assert len(set(paths)) == scenes.SHOWN
    for path in paths:
        article, colour, digit = path.stem.split("_")[1:]
        assert colour in COLOURED and digit in NAMED and article == ("an" if colour == "orange" else "a")
        pixels = np.asarray(Image.open(path), float).reshape(-1, 3)
        ink = pixels[pixels.max(1).argsort()[-20:]].mean(0)  # hardly mixed with its ground
        nearest = min(digits.COLOURS, key=lambda name: np.abs(ink - digits.COLOURS[name]).sum())
        assert nearest == colour
