"""METEOR and SPICE: asked in pycocoevalcap's way where it is installed, left out with a line where something
is missing."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from mindblip2.evaluation.metrics.java import java_scores, why_not

MEASURED = json.loads(
    (Path(__file__).parents[2] / "fixtures" / "caption_scores.json").read_text(encoding="utf-8")
)
CAPTIONS, REFERENCES = {3: "A dog's toy."}, {3: ["The dog.", "A toy!"]}

# A stand-in with pycocoevalcap's names and layout: METEOR is 0.5, SPICE 0.25, and what they are asked is
# kept.
METEOR = """
import threading
ASKED = []
class Meteor:
    def __init__(self):
        self.lock = threading.Lock()
    def compute_score(self, gts, res):
        self.lock.acquire()
        ASKED.append((gts, res))
        score = {score}
        self.lock.release()
        return score, [score]
    def __del__(self):
        assert self.lock.acquire(timeout=0), "the destructor would wait for ever"
        self.lock.release()
        ASKED.append("ended")
"""
SPICE = """
import os
ASKED = []
class Spice:
    def compute_score(self, gts, res):
        ASKED.append((gts, res, os.environ["JDK_JAVA_OPTIONS"]))
        return 0.25, [{}]
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """installed(score, parser) → the folder of a stand-in, first on the path, and a ``java`` that is never
    run."""

    def made(score="0.5", parser=True):
        root = tmp_path / "site" / "pycocoevalcap"
        (root / "spice" / "lib").mkdir(parents=True)
        (root / "meteor").mkdir()
        (root / "meteor" / "meteor.py").write_text(METEOR.replace("{score}", score))
        (root / "spice" / "__init__.py").write_text("")
        (root / "spice" / "spice.py").write_text(SPICE)
        (root / "spice" / "get_stanford_models.py").write_text(
            "SPICELIB, JAR = 'lib', 'stanford-corenlp-3.6.0'\n"
        )
        if parser:
            (root / "spice" / "lib" / "stanford-corenlp-3.6.0.jar").write_bytes(b"")
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "java").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "bin" / "java").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        return root

    for name in [name for name in sys.modules if name.startswith("pycocoevalcap")]:
        monkeypatch.delitem(sys.modules, name)
    yield made
    for name in [name for name in sys.modules if name.startswith("pycocoevalcap")]:
        del sys.modules[name]


def asked(name):
    return sys.modules[f"pycocoevalcap.{name}.{name}"].ASKED


def test_both_are_asked_about_words_as_the_other_scores(installed, capsys, monkeypatch):
    installed()
    monkeypatch.delenv("JDK_JAVA_OPTIONS", raising=False)
    assert java_scores(CAPTIONS, REFERENCES) == {"METEOR": 0.5, "SPICE": 0.25}
    # references first: pycocoevalcap's order
    words = {3: ["the dog", "a toy"]}, {3: ["a dog 's toy"]}
    assert asked("meteor") == [words, "ended"] and asked("spice")[0][:2] == words
    assert (
        "--add-opens=java.base/java.lang=ALL-UNNAMED" in asked("spice")[0][2]
        and "JDK_JAVA_OPTIONS" not in os.environ
    )
    monkeypatch.setenv("JDK_JAVA_OPTIONS", "-Xss2m")
    assert java_scores(CAPTIONS, REFERENCES, ["SPICE"]) == {"SPICE": 0.25}
    assert (
        asked("spice")[1][2].startswith("-Xss2m --add-opens=") and os.environ["JDK_JAVA_OPTIONS"] == "-Xss2m"
    )
    assert java_scores(CAPTIONS, REFERENCES, []) == {} and capsys.readouterr().out == ""


def test_what_is_missing_is_said_in_one_line(installed, capsys, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pycocoevalcap", None)  # as where it is not installed
        assert java_scores(CAPTIONS, REFERENCES) == {}
    assert (
        capsys.readouterr().out
        == "METEOR and SPICE left out: pycocoevalcap is not installed: pip install 'mindblip2[metrics]'\n"
    )
    installed(parser=False)
    assert java_scores(CAPTIONS, REFERENCES) == {"METEOR": 0.5}
    assert capsys.readouterr().out == (
        "SPICE left out: Stanford's parser is not there: python -m pycocoevalcap.spice.get_stanford_models "
        "downloads it once\n"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    assert why_not("METEOR") == why_not("SPICE") == "there is no java: install a Java runtime"


def test_a_program_that_fails_is_left_out_and_hangs_nothing(installed, capsys):
    """pycocoevalcap's METEOR keeps its lock when its program dies, and its destructor waits for that lock."""
    installed(score="float('')")
    assert java_scores(CAPTIONS, REFERENCES, ["METEOR"]) == {}
    assert (
        capsys.readouterr().out
        == "METEOR left out: its Java program failed: could not convert string to float: ''\n"
    )
    assert asked("meteor")[-1] == "ended"


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR is a Java program")
def test_meteor_itself(capsys):
    """The real one, where it is installed (it is no part of the tests' own packages)."""
    pytest.importorskip("pycocoevalcap.meteor.meteor", reason="pip install 'mindblip2[metrics]'")
    captions, references = MEASURED["captions"], MEASURED["references"]
    found = java_scores(captions, references)
    assert found["METEOR"] == pytest.approx(MEASURED["java"]["METEOR"], rel=1e-6)
    swapped = java_scores(
        {**captions, "kite": captions["dog"], "dog": captions["kite"]}, references, ["METEOR"]
    )
    assert swapped["METEOR"] < found["METEOR"] - 0.01  # the control
    assert "SPICE" in found or "SPICE left out: " in capsys.readouterr().out
