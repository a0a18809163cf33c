"""Scores of captions are those that pycocoevalcap gave (tests/fixtures/caption_scores.json says how it was
run)."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mindblip2.evaluation.metrics.captions import NAMES, bleu, caption_scores, cider_d, rouge_l, why_no_cider
from mindblip2.evaluation.metrics.ptb_tokenizer import words

MEASURED = json.loads(
    (Path(__file__).parents[2] / "fixtures" / "caption_scores.json").read_text(encoding="utf-8")
)
CAPTIONS, REFERENCES = MEASURED["captions"], MEASURED["references"]
FOUND = [words(one) for one in CAPTIONS.values()]
WANTED = [[words(one) for one in REFERENCES[picture]] for picture in CAPTIONS]


def test_the_scores_of_the_set():
    scores = caption_scores(CAPTIONS, REFERENCES)
    assert tuple(scores) == NAMES and scores == pytest.approx(MEASURED["scores"], rel=1e-12)


def test_the_scores_of_each_picture():
    for name, found in (("ROUGE_L", rouge_l(FOUND, WANTED)), ("CIDEr", cider_d(FOUND, WANTED))):
        assert dict(zip(CAPTIONS, found)) == pytest.approx(MEASURED["per_picture"][name], rel=1e-12)


def test_wrong_scores_would_be_noticed():
    """Negative controls: each metric sees a word more, swapped captions, and words that are only split at
    spaces."""
    right = caption_scores(CAPTIONS, REFERENCES)
    longer = caption_scores({**CAPTIONS, "kite": CAPTIONS["kite"] + " cat"}, REFERENCES)
    swapped = caption_scores({**CAPTIONS, "kite": CAPTIONS["dog"], "dog": CAPTIONS["kite"]}, REFERENCES)
    for name in NAMES:
        assert longer[name] < right[name] and swapped[name] < right[name]
    plain = (
        [one.split() for one in CAPTIONS.values()],
        [[one.split() for one in REFERENCES[picture]] for picture in CAPTIONS],
    )
    assert bleu(*plain)[0] < right["Bleu_1"] and np.mean(cider_d(*plain)) < right["CIDEr"]


def test_a_perfect_caption():
    scores = caption_scores(
        {picture: texts[0] for picture, texts in REFERENCES.items()},
        {picture: texts[:1] for picture, texts in REFERENCES.items()},
    )
    assert scores == pytest.approx({**dict.fromkeys(NAMES, 1.0), "CIDEr": 10.0})


def test_bleu_by_hand():
    """Two of four words and one of three pairs; the reference that is nearest in length has five words."""
    found, wanted = [["a", "b", "x", "y"]], [[["a", "b", "c", "d", "e"], ["q"] * 9]]
    assert bleu(found, wanted)[:2] == pytest.approx(
        [0.5 * math.exp(1 - 5 / 4), math.sqrt(0.5 / 3) * math.exp(1 - 5 / 4)]
    )
    assert bleu([["a"] * 4], [[["a", "b", "c", "d"]]])[0] == pytest.approx(0.25)  # clipped


def test_rouge_by_hand():
    """Common subsequence a c e of three: precision 3/4, recall 3/5."""
    [score] = rouge_l([["a", "c", "x", "e"]], [[["a", "b", "c", "d", "e"]]])
    assert score == pytest.approx((1 + 1.44) * 0.75 * 0.6 / (0.6 + 1.44 * 0.75))


def test_cider_weighs_what_is_rare():
    wanted = [[["a", "red", "kite"]], [["a", "green", "bus"]], [["a", "blue", "cat"]]]
    rare, common = cider_d([["kite"], ["a"], ["cat"]], wanted)[:2]
    assert rare > common == 0


def test_an_empty_caption_scores_nothing():
    scores = caption_scores({**CAPTIONS, "kite": ""}, REFERENCES)
    assert all(scores[name] < MEASURED["scores"][name] for name in NAMES)
    assert caption_scores({"a": ""}, {"a": ["a cat"]}) == pytest.approx(
        dict.fromkeys(NAMES[:-1], 0.0), abs=1e-4
    )


@pytest.mark.parametrize(
    "captions, references, words",
    [
        ({}, {}, "no captions"),
        ({"a": "x"}, {"b": ["x"]}, "without references .'a'., without a caption .'b'."),
        ({"a": "x"}, {"a": "a cat"}, "expected a list of at least one caption"),
        ({"a": "x"}, {"a": []}, "expected a list"),
    ],
)
def test_what_does_not_fit_is_an_error(captions, references, words):
    with pytest.raises(ValueError, match=words):
        caption_scores(captions, references)


@pytest.mark.parametrize(
    "captions, references, why",
    [
        ({"a": "a red cat"}, {"a": ["a red cat", "a cat"]}, "there is one picture"),
        (
            {"a": "a red cat", "b": "a cat"},
            {"a": ["a red cat"], "b": ["a red cat"]},
            "the references of all 2 pictures have the same words",
        ),
        ({"a": "a cat", "b": "a dog"}, {"a": ["!"], "b": ["."]}, "the same words"),
    ],
)
def test_a16_cider_of_a_set_that_tells_no_pictures_apart_is_said_and_no_number(
    captions, references, why, capsys
):
    scores = caption_scores(captions, references)
    assert tuple(scores) == NAMES[:-1] and "CIDEr" not in scores
    assert "CIDEr left out: " in capsys.readouterr().out and why in why_no_cider(list(references.values()))
    found, wanted = (
        [words(one) for one in captions.values()],
        [[words(one) for one in own] for own in references.values()],
    )
    assert cider_d(found, wanted) == [0.0] * len(captions)  # what it would be, whatever was written


def test_a16_two_pictures_that_differ_in_one_word_have_a_cider(capsys):
    """Negative control."""
    references = {"a": ["a red cat"], "b": ["a red dog"]}
    right = caption_scores({"a": "a red cat", "b": "a red dog"}, references)["CIDEr"]
    wrong = caption_scores({"a": "a red dog", "b": "a red cat"}, references)["CIDEr"]
    assert right > wrong == 0 and "left out" not in capsys.readouterr().out
