"""Answers are normalised and scored as by VQA's own evaluation, of which tests/fixtures/vqa.json holds
measured output."""

import json
from pathlib import Path

import pytest

from mindblip2.data.text.cleaning import blip_question
from mindblip2.evaluation.vqa import PROMPT, normal_answer, vqa_accuracy

MEASURED = json.loads((Path(__file__).parents[1] / "fixtures" / "vqa.json").read_text(encoding="utf-8"))


def test_every_measured_answer():
    wrong = {
        answer: (normal_answer(answer), expected)
        for answer, expected in MEASURED["normal"]
        if normal_answer(answer) != expected
    }
    assert len(MEASURED["normal"]) > 150 and not wrong


@pytest.mark.parametrize("rule", ["official", "lavis"])
def test_every_measured_accuracy(rule):
    found = vqa_accuracy(
        [case["answer"] for case in MEASURED["cases"]], [case["people"] for case in MEASURED["cases"]], rule
    )
    assert found == pytest.approx([case[rule] for case in MEASURED["cases"]], abs=1e-9)


def test_the_other_rule_would_be_noticed():
    assert sum(case["official"] != case["lavis"] for case in MEASURED["cases"]) == 59


@pytest.mark.parametrize(
    "answer, normal",
    [
        ("The Two dogs.", "2 dogs"),
        ("an apple, a pear", "apple pear"),
        ("None", "0"),
        ("dont", "don't"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("what's", "what's"),
        ("a", ""),
    ],
)
def test_normal_answers(answer, normal):
    assert normal_answer(answer) == normal


@pytest.mark.parametrize("agree, accuracy", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_a_third_of_a_point_for_each_that_agrees(agree, accuracy):
    """One agrees: in one of ten sets of nine nobody does, in the others one: 9/10 · 1/3."""
    assert vqa_accuracy(["yes"], [["yes"] * agree + ["no"] * (10 - agree)]) == [pytest.approx(accuracy)]


def test_what_people_all_say_is_compared_as_it_is_officially():
    for rule, accuracy in (("official", 0.0), ("lavis", 1.0)):
        assert vqa_accuracy(["Yes."], [["yes"] * 10], rule) == [accuracy]


def test_the_prompt_is_lavis():
    assert (
        PROMPT.format(blip_question("What colour is the seven?"))
        == "Question: what colour is the seven? Short answer:"
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((["yes"], []), "1 answers to 0 questions"),
        ((["yes"], [[]]), "list of at least one"),
        ((["yes"], ["yes"]), "list of at least one"),
        ((["yes"], [["yes"]], "mine"), "rule = 'mine': expected one of official, lavis"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments, words):
    with pytest.raises(ValueError, match=words):
        vqa_accuracy(*arguments)


@pytest.mark.parametrize("rule", ["official", "lavis"])
def test_a_single_answer_is_right_or_wrong(rule):
    assert vqa_accuracy(["Red.", "blue", "2"], [["red"], ["red"], ["two"]], rule) == [1.0, 0.0, 1.0]
    assert vqa_accuracy(["red"], [["red", "blue"]], rule) != [1.0]  # control: of two people both count
