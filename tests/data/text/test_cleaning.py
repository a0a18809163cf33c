"""Captions and questions are cleaned exactly as by LAVIS 1.0.2."""

import re

import numpy as np
import pytest

from mindblip2.data.text.cleaning import BlipCaption, BlipQuestion, blip_caption, blip_question

PROMPT = "a photo of "


def test_every_caption_of_lavis(lavis_text):
    assert len(lavis_text["captions"]) == 15
    for case in lavis_text["captions"]:
        assert BlipCaption()(case["raw"]) == blip_caption(case["raw"]) == case["caption"]
        assert BlipCaption(prompt=PROMPT)(case["raw"]) == case["caption_with_prompt"]
        assert BlipQuestion()(case["raw"]) == blip_question(case["raw"]) == case["question"]


def test_question_and_caption_differ(lavis_text):
    """Negative control: one rule for both would fail."""
    assert any(BlipQuestion()(case["raw"]) != case["caption"] for case in lavis_text["captions"])


def test_spaces_must_be_collapsed_after_punctuation_is_replaced(lavis_text):
    """Negative control: the two steps in the other order leave double spaces."""

    def swapped(text):
        return re.sub(r'[.!"()*#:;~]', " ", re.sub(r"\s{2,}", " ", text.lower())).rstrip("\n").strip(" ")

    assert any(swapped(case["raw"]) != case["caption"] for case in lavis_text["captions"][:6])


def test_prompt_is_added_after_cleaning():
    assert BlipCaption(prompt="A photo of: ")("A Cat!") == "A photo of: a cat"
    assert BlipCaption()("A photo of: " + "A Cat!") == "a photo of a cat"  # MindFormers' order


def test_prompt_does_not_count_as_words():
    assert BlipCaption(prompt=PROMPT, max_words=2)("one two three") == "a photo of one two"
    assert BlipCaption(max_words=2)(PROMPT + "one two three") == "a photo"


@pytest.mark.parametrize("count, kept", [(49, 49), (50, 50), (51, 50)])
def test_fifty_words_are_kept(count, kept):
    assert BlipCaption()("word " * count) == " ".join(["word"] * kept)


def test_one_newline_at_the_end_goes_and_one_inside_stays():
    assert BlipCaption()("a cat\n") == "a cat"
    assert BlipCaption()("a\ncat") == "a\ncat"
    assert BlipQuestion()("a cat \n") == "a cat \n"


def test_string_array_of_a_data_set():
    assert BlipCaption()(np.array("A Cat.")) == "a cat"


@pytest.mark.parametrize("wrong", [b"a cat", None, 3, ["a cat"], np.array(["a", "b"])])
def test_what_is_no_string_is_refused(wrong):
    with pytest.raises(TypeError, match="must be a string"):
        BlipCaption()(wrong)
    with pytest.raises(TypeError, match="must be a string"):
        BlipQuestion()(wrong)
