"""The demo's pictures: who may see which scan and which pair, that captions tell the truth, and what is
drawn."""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mindblip2.data.text.cleaning import blip_caption
from mindblip2.demo import digits
from mindblip2.demo.digits import Scene, caption, caption_id, held_out, render, sample_scene, split

pytest.importorskip("sklearn")
VOCAB = (Path(digits.__file__).parents[1] / "assets" / "digits_vocab.txt").read_text().split("\n")[:-1]
LONGEST = 18  # tokens: "a red seven, a green two and a blue one from left to right" with [CLS] and [SEP]
EXAMS = ("digits", "pairs", "scenes")


@pytest.fixture(scope="module")
def training():
    rng = np.random.default_rng(7)
    return [sample_scene(rng) for _ in range(20_000)]


def tokens(text):
    return text.replace(",", " ,").split()


def unknown(text):
    return [word for word in tokens(text) if word not in VOCAB]


def parsed(text):
    """What a canonical caption says: (digits, colours, layout)."""
    words = tokens(text)
    named = [
        (digits.DIGITS.index(words[i + 2]), words[i + 1])
        for i, word in enumerate(words)
        if word in ("a", "an")
    ]
    layout = "column" if {"above", "bottom"} & set(words) else "row"
    return (*(tuple(column) for column in zip(*named)), layout)


def ink_box(scene, size=digits.SIZE):
    """Rows and columns of the pixels that differ from the corner-most ground colour by more than any tint."""
    picture = render(scene, size).astype(int)
    ground = np.median(picture.reshape(-1, 3), axis=0)
    rows, columns = np.nonzero(np.abs(picture - ground).max(-1) > 40)
    return rows, columns


# ------------------------------------------------------------------------------------------------ the split
def test_every_scan_is_on_exactly_one_side_and_a_fifth_is_held_out():
    train, test = (np.concatenate(split()[part]) for part in ("train", "test"))
    assert sorted([*train, *test]) == list(range(1797))
    assert (len(train), len(test)) == (1442, 355)


def test_each_digit_has_its_share_of_both_sides():
    labels = digits.load_scans()[1]
    for part, least in (("train", 139), ("test", 34)):
        for digit, scans in enumerate(split()[part]):
            assert len(scans) >= least and (labels[scans] == digit).all()


def test_training_draws_training_scans_only_and_the_exams_held_out_ones_only(training):
    sides = {part: set(np.concatenate(split()[part]).tolist()) for part in ("train", "test")}
    assert {scan for scene in training for scan in scene.scans} == sides["train"]
    for kind in EXAMS:
        assert {scan for scene in held_out(kind) for scan in scene.scans} <= sides["test"]
    assert (
        {scene.scans[0] for scene in held_out("digits")}
        == sides["test"]
        == {s.scans[0] for s in held_out("pairs")}
    )


def test_a_drawn_scan_shows_the_digit_of_its_scene(training):
    labels = digits.load_scans()[1]
    assert all(tuple(labels[list(scene.scans)]) == scene.digits for scene in training[:2000])


# ------------------------------------------------------------------------------------------------ the pairs
def test_unseen_pairs_are_never_drawn_in_training_and_all_others_are(training):
    drawn = Counter(pair for scene in training for pair in zip(scene.digits, scene.colours))
    assert set(drawn) == set(digits.SEEN_PAIRS) and not set(drawn) & set(digits.UNSEEN_PAIRS)
    assert len(digits.SEEN_PAIRS) == 70 and len(set(digits.SEEN_PAIRS + digits.UNSEEN_PAIRS)) == 80
    assert min(drawn.values()) > 0.8 * max(drawn.values())


def test_the_pair_check_can_fail():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, pairs=digits.SEEN_PAIRS + digits.UNSEEN_PAIRS) for _ in range(200)]
    assert {pair for s in scenes for pair in zip(s.digits, s.colours)} & set(digits.UNSEEN_PAIRS)


def test_every_digit_and_every_colour_is_seen_in_training():
    seen_digits, seen_colours = zip(*digits.SEEN_PAIRS)
    assert min(Counter(seen_digits).values()) == 7 and len(set(seen_digits)) == 10
    assert min(Counter(seen_colours).values()) == 8 and len(set(seen_colours)) == 8


def test_the_pair_exam_holds_unseen_pairs_only_and_the_digit_exam_none():
    assert {(s.digits[0], s.colours[0]) for s in held_out("pairs")} == set(digits.UNSEEN_PAIRS)
    assert {(s.digits[0], s.colours[0]) for s in held_out("digits")} <= set(digits.SEEN_PAIRS)


# ------------------------------------------------------------------------------------------------ determinism
def test_the_same_seed_gives_the_same_scenes_and_another_seed_others():
    first, again, other = (
        [sample_scene(np.random.default_rng(seed)) for _ in range(3)] for seed in (3, 3, 4)
    )
    assert first == again != other
    assert held_out("scenes") == held_out("scenes") != held_out("scenes", seed=1)


def test_the_same_scene_gives_the_same_pixels_and_another_pose_others(training):
    scene = training[0]
    assert (render(scene) == render(replace(scene))).all()
    assert (render(scene) != render(replace(scene, pose=scene.pose + 1))).any()


# ------------------------------------------------------------------------------------------------ captions
@pytest.mark.parametrize(
    "scene, text",
    [
        (Scene((7,), ("red",), (0,), "navy"), "a red seven"),
        (Scene((8,), ("orange",), (0,), "navy"), "an orange eight"),
        (Scene((7, 2), ("red", "green"), (0, 0), "navy"), "a red seven to the left of a green two"),
        (Scene((7, 2), ("red", "green"), (0, 0), "navy", "column"), "a red seven above a green two"),
        (
            Scene((7, 2, 1), ("red", "green", "blue"), (0, 0, 0), "navy"),
            "a red seven, a green two and a blue one from left to right",
        ),
        (
            Scene((7, 2, 1), ("red", "green", "blue"), (0, 0, 0), "navy", "column"),
            "a red seven, a green two and a blue one from top to bottom",
        ),
    ],
)
def test_captions(scene, text):
    assert caption(scene) == text


def test_a_caption_with_less_detail_names_only_the_one_property():
    scene = Scene((7, 2), ("red", "green"), (0, 0), "navy")
    assert caption(scene, "digit") == "a handwritten seven to the left of a handwritten two"
    assert caption(scene, "colour") == "a red digit to the left of a green digit"
    with pytest.raises(ValueError, match="detail = 'colours'"):
        caption(scene, "colours")


def test_captions_say_what_is_in_the_scene(training):
    for scene in training[:2000]:
        found = parsed(caption(scene))
        assert found[:2] == (scene.digits, scene.colours)
        assert found[2] == scene.layout or len(scene.digits) == 1


def test_the_parser_notices_a_wrong_caption():
    scene = Scene((7, 2), ("red", "green"), (0, 0), "navy")
    assert parsed(caption(replace(scene, layout="column")))[2] != scene.layout
    assert parsed(caption(replace(scene, colours=("green", "red"))))[1] != scene.colours


def test_cleaning_leaves_captions_as_they_are(training):
    for scene in training[:2000]:
        for detail in digits.DETAILS:
            assert blip_caption(caption(scene, detail)) == caption(scene, detail)


def test_captions_fit_and_have_no_unknown_word(training):
    texts = {caption(scene, detail) for scene in training[:5000] for detail in digits.DETAILS}
    texts |= {caption(scene) for kind in EXAMS for scene in held_out(kind)}
    assert not {word for text in texts for word in unknown(text)}
    assert max(len(tokens(text)) for text in texts) + 2 <= LONGEST
    assert unknown("a crimson seven") == ["crimson"]


def test_the_vocabulary_begins_with_the_special_tokens_and_repeats_none():
    assert VOCAB[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(set(VOCAB)) == len(VOCAB) < 200 and "[DEC]" not in VOCAB


def test_the_tokenizer_makes_ids_of_the_words():
    tokenizer = pytest.importorskip("mindblip2.data.text.tokenizer").BertTokenizer("digits_vocab.txt")
    text = "a red seven, a green two and a blue one from left to right"
    ids = tokenizer(text, padding=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", *tokens(text), "[SEP]"]
    assert tokenizer.decode(ids) == text


def test_equal_captions_share_an_id_that_fits_int32_and_different_ones_do_not(training):
    texts = {caption(scene, detail) for scene in training for detail in digits.DETAILS}
    ids = {caption_id(text) for text in texts}
    assert len(ids) == len(texts) and 0 <= min(ids) and max(ids) < 2**31


def test_the_retrieval_exam_has_no_caption_twice():
    scenes = held_out("scenes")
    assert len({caption(scene) for scene in scenes}) == len(scenes) == 500
    assert Counter(len(scene.digits) for scene in scenes) == {2: 250, 3: 250}
    with pytest.raises(ValueError, match="kind = 'pictures'"):
        held_out("pictures")


# ------------------------------------------------------------------------------------------------ pixels
@pytest.mark.parametrize("size", [32, 48, 64, 200])
def test_a_picture_has_the_size_asked_for(training, size):
    picture = render(training[0], size)
    assert picture.shape == (size, size, 3) and picture.dtype == np.uint8


def test_every_digit_is_drawn_in_its_colour_and_does_not_fill_the_picture(training):
    for scene in training[:300]:
        picture = render(scene).astype(int)
        share = [
            (np.abs(picture - digits.COLOURS[colour]).max(-1) <= digits.TINT + 1).mean()
            for colour in scene.colours
        ]
        assert 0.005 < min(share) and max(share) < 0.5, scene


def test_the_ground_keeps_its_colour_and_takes_most_of_the_picture(training):
    for scene in training[:300]:
        apart = np.abs(render(scene).astype(int) - digits.GROUNDS[scene.ground]).max(-1)
        assert (apart <= digits.TINT + 1).mean() > 0.4, scene


def test_a_digit_in_the_colour_of_another_is_noticed(training):
    scene = replace(training[0], digits=training[0].digits[:1], colours=("red",), scans=training[0].scans[:1])
    red = np.abs(render(replace(scene, colours=("blue",))).astype(int) - digits.COLOURS["red"]).max(-1)
    assert (red <= digits.TINT + 1).mean() == 0


@pytest.mark.parametrize("layout, axis", [("row", 1), ("column", 0)])
def test_digits_stand_in_reading_order(layout, axis):
    rng = np.random.default_rng(5)
    for _ in range(100):
        scene = replace(sample_scene(rng, count=3), layout=layout, colours=("red", "green", "blue"))
        picture = render(scene).astype(int)
        middles = [
            np.argwhere(np.abs(picture - digits.COLOURS[c]).max(-1) <= 2 * digits.TINT).mean(0)
            for c in scene.colours
        ]
        along, across = [m[axis] for m in middles], [m[1 - axis] for m in middles]
        assert along == sorted(along) and np.diff(along).min() > np.ptp(across) * 0.8, scene


def test_every_ground_is_darker_than_every_digit():
    def luma(rgb):
        return np.dot(rgb, (0.299, 0.587, 0.114))

    assert min(map(luma, digits.COLOURS.values())) - max(map(luma, digits.GROUNDS.values())) > 45


def test_at_most_a_little_ink_falls_off_the_edge(training):
    """Drawn on a canvas with the same geometry but no ground, ink at the very border is rare."""
    cut = 0
    for scene in training[:300]:
        rows, columns = ink_box(replace(scene, wild=0.5))
        size = digits.SIZE - 1
        cut += np.mean((rows == 0) | (rows == size) | (columns == 0) | (columns == size))
    assert cut / 300 < 0.05


# ------------------------------------------------------------------------------------------------ the door
def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits.load_scans.cache_clear()
    try:
        with pytest.raises(ImportError, match=r"pip install mindblip2\[demo\]"):
            digits.load_scans()
    finally:
        digits.load_scans.cache_clear()


def test_questions_have_one_answer_which_the_scene_gives():
    one = digits.Scene((7,), ("red",), (0,), "black")
    assert digits.questions(one) == [
        ("how many digits are there?", "one"),
        ("what colour is the seven?", "red"),
        ("which digit is red?", "seven"),
    ]
    twins = digits.Scene((7, 7, 2), ("red", "blue", "blue"), (0, 0, 0), "black")
    assert digits.questions(twins) == [
        ("how many digits are there?", "three"),
        ("which digit is red?", "seven"),
        ("what colour is the two?", "blue"),
    ]


def test_the_captioning_exam_has_one_or_two_held_out_digits_in_any_pair():
    told = digits.held_out("told")
    pairs = [pair for scene in told for pair in zip(scene.digits, scene.colours)]
    assert [len(scene.digits) for scene in told[:4]] == [1, 2, 1, 2] and len(told) == digits.SCENES
    assert set(pairs) & set(digits.UNSEEN_PAIRS) and set(pairs) & set(digits.SEEN_PAIRS)
    assert all(
        scan in digits.split()["test"][digit]
        for scene in told
        for digit, scan in zip(scene.digits, scene.scans)
    )
