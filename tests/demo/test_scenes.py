"""The order in which training shows its scenes, and the two examinations."""

import numpy as np
import pytest

from mindblip2.demo import digits, scenes

COLOURED = set(digits.COLOURS)
NAMED = set(digits.DIGITS)


def kinds(samples):
    """Per batch of four the kinds of its captions, as (names a colour, names a digit)."""
    words = [set(sample["caption"].split()) for sample in samples]
    found = [(bool(w & COLOURED), bool(w & NAMED)) for w in words]
    return [set(found[i : i + 4]) for i in range(0, len(found), 4)]


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
    assert (
        np.array_equal(again["image"], passes[0][0]["image"]) and again["caption"] == passes[0][0]["caption"]
    )
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
    assert (
        [len(data.pictures) for data in sets] == [held_out, held_out] == [len(data.truths) for data in sets]
    )
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


# ------------------------------------------------------------------------------------------------ stage 2
def test_stage_2_is_told_captions_and_answers():
    told = scenes.CaptionedScenes(200, 3)
    samples = list(told.epoch(0))
    asked = [sample for sample in samples if "prompt" in sample]
    assert len(told) == len(samples) == 200 and 60 < len(asked) < 140
    assert all(
        sample["prompt"].startswith("Question: ") and sample["prompt"].endswith("? Short answer:")
        for sample in asked
    )
    assert {sample["caption"] for sample in asked} <= COLOURED | NAMED
    again, other = next(told.epoch(0)), next(told.epoch(1))
    assert np.array_equal(again["image"], samples[0]["image"]) and not np.array_equal(
        other["image"], again["image"]
    )


def test_questions_are_asked_about_the_pictures_that_are_captioned():
    asked, captioned = scenes.questions(), scenes.captioned(kind="told")
    assert len(asked) == len(captioned) == digits.SCENES
    assert all(np.array_equal(one.image, other["image"]) for one, other in zip(asked, captioned))
    for one, scene in zip(asked, digits.held_out("told")):
        assert (one.question, *one.answers) in digits.questions(scene)


def test_what_is_said_follows_from_the_notes():
    told = list(scenes.texts(200, 5))
    asked = [one for one in told if " Short answer: " in one[1]]
    assert 60 < len(asked) < 140
    assert (
        scenes.digits.caption(digits.Scene((7, 2), ("red", "blue"), (0, 0), "black"))
        == "a red seven to the left of a blue two"
    )
    for notes, said in told:
        things = set(notes.split()) & (NAMED | COLOURED)
        answer = (
            {said.split()[-1]} - {"one", "two", "three"}
            if (notes, said) in asked
            else set(said.replace(",", "").split())
        )
        assert answer & (NAMED | COLOURED) <= things and (answer & NAMED or (notes, said) in asked)
        assert ("row" in notes) == ("left" in said) or (notes, said) in asked


def test_the_language_models_vocabulary_is_made_of_its_texts():
    """The packaged tokenizer, trained again: byte-level BPE on 2000 texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from mindblip2.data.text.language_tokenizer import LanguageTokenizer

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    made.train_from_iterator(
        map("".join, scenes.texts(2000, 0)),
        trainers.BpeTrainer(
            vocab_size=512,
            min_frequency=2,
            show_progress=False,
            special_tokens=["<unk>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    packaged = LanguageTokenizer("digits_tokenizer.json", max_length=32)
    texts = ["".join(told) for told in scenes.texts(300, 1)]
    assert [packaged.encode(text, add_special_tokens=False) for text in texts] == [
        made.encode(text).ids for text in texts
    ]
    assert (
        len(packaged) == made.get_vocab_size()
        and [packaged.decode(packaged.encode(text)) for text in texts] == texts
    )
    # with the end token they fit the model's positions
    assert max(len(packaged.encode(text)) for text in texts) < 48
    assert len(packaged.encode("a zebra")) > len(packaged.encode("a seven"))  # other words are spelled
