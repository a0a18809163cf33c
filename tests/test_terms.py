"""Private words of earlier versions are not used again (docs/architecture.md has the words of today)."""

import re

import pytest

from tests.architecture_rules import ROOT, listed

# Regular expressions of words that have no meaning here today, in any tracked text file.
GONE = (
    r"\bdoorbells?\b",
    r"\bthree doors\b",
    r"\bROOMS\b",
    r"\bMAY_IMPORT\b",
    r"\bCELL_ORDER\b",
    r"\brules? of the house\b",
    r"\bhouse rules?\b",
    r"\bthe house\b",
    r"\bnever_of\b",
    r"\bone_voice\b",
    r"\bside_by_side\b",
    r"\bpretend\(",
    r"\bHeldOut\b",
    r"\bScribe\b",
    r"\bclass Frame\b",
    r"\bFrame\(nn\b",
    r"\baround_cases\b",
    r"\bdesk\.",
    r"\bself\.desk\b",
    r"\bsniff(?:s|ed|er)?\b",
    r"(?:def |\.)beside\(",
    r"(?:mindblip2|tests)[./]cells\b",
    r"\bMKL freed\b",
)
WORD = re.compile("|".join(GONE))
# The vocabulary of BERT, stored results, and this list.
EXCEPT = re.compile(r"^(?:mindblip2/assets|tests/fixtures|tests/reference)/|^tests/test_terms\.py$")


def private_words(text, file):
    """The lines of ``text`` with a word that is gone."""
    return [
        f"{file}:{number}: {found.group()}"
        for number, line in enumerate(text.splitlines(), 1)
        if (found := WORD.search(line))
    ]


def test_no_private_word_is_used():
    texts = {
        name: data.decode("utf-8", "replace")
        for name in listed()
        if not EXCEPT.search(name) and b"\0" not in (data := (ROOT / name).read_bytes())
    }
    assert len(texts) > 300
    found = [line for name, text in texts.items() for line in private_words(text, name)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "# the doorbell",
        "three doors lead in",
        "ROOMS = {}",
        "by the house rules",
        "enters the house here",
        "with never_of(cell):",
        "comm.pretend(2, 1)",
        "class Frame(nn.Cell):",
        "self.desk.start()",
        "from mindblip2.data.images import sniff",
        "settings = tokenizer_files.beside(path)",
        "mindblip2/cells/vit.py",
        "compared in tests/cells",
    ],
)
def test_a_private_word_is_reported(text):
    assert private_words(text, "a.py")


def test_plain_words_are_not_reported():
    assert (
        private_words("the config.json beside the file; a frame of a GIF; doors, rooms, desks", "a.py") == []
    )
