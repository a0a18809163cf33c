"""Words of captions are those of Stanford's PTB tokenizer, of which tests/fixtures/ptb.json holds measured
output."""

import json
from pathlib import Path

import pytest

from mindblip2.evaluation.metrics.ptb_tokenizer import words

LINES = json.loads((Path(__file__).parents[2] / "fixtures" / "ptb.json").read_text(encoding="utf-8"))["lines"]


def test_every_measured_line():
    wrong = {
        line: (" ".join(words(line)), expected)
        for line, expected in LINES
        if " ".join(words(line)) != expected
    }
    assert len(LINES) == 610 and not wrong


@pytest.mark.parametrize(
    "simpler", [str.split, lambda line: line.lower().replace(".", " ").replace(",", " ").split()]
)
def test_simpler_rules_would_be_noticed(simpler):
    assert sum(" ".join(simpler(line)) != expected for line, expected in LINES) > 200


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("A dog's toy, isn't it?", "a dog 's toy is n't it"),
        ("", ""),
        (" . ", ""),
        ("two\nlines", "two lines"),
        ("A man (left) at 5 p.m. on Main St.", "a man -lrb- left -rrb- at 5 p.m. on main st."),
    ],
)
def test_examples(caption, expected):
    assert words(caption) == expected.split()
