"""Cleaning of captions and questions before the tokenizer, in LAVIS's order
(lavis/processors/blip_processors.py)."""

import re
from dataclasses import dataclass

import numpy as np

PUNCTUATION = re.compile(r'[.!"()*#:;~]')  # ',', '?', '-' and "'" stay: LAVIS keeps them
SPACES = re.compile(r"\s{2,}")  # a single tab or newline inside a caption stays


@dataclass(frozen=True)
class BlipCaption:
    """A caption as the Q-Former was trained on it (LAVIS ``BlipCaptionProcessor``).

    Lower case, punctuation to spaces, runs of white space to one space, stripped, the first ``max_words``
    words; then ``prompt`` is put in front as it is.  The prompt comes last, because cleaning would cut its
    final space and colon: MindFormers cleaned it too, so that "A photo of: " became "a photo of".
    """

    prompt: str = ""
    max_words: int | None = 50

    def __call__(self, caption):
        """Caption (str) to cleaned caption (str).  Raises TypeError when ``caption`` is not a string."""
        text = PUNCTUATION.sub(" ", text_of(caption).lower())
        text = SPACES.sub(" ", text).rstrip("\n").strip(" ")
        return self.prompt + first_words(text, self.max_words)


@dataclass(frozen=True)
class BlipQuestion:
    """A question as LAVIS prepares it for VQA (``BlipQuestionProcessor``).

    Unlike a caption, punctuation is dropped without a space ("5:30" becomes "530"), and only spaces at the
    end go.
    """

    max_words: int = 50

    def __call__(self, question):
        """Question (str) to cleaned question (str).  Raises TypeError when ``question`` is not a string."""
        return first_words(PUNCTUATION.sub("", text_of(question).lower()).rstrip(" "), self.max_words)


def blip_caption(caption, prompt="", max_words=50):
    """:class:`BlipCaption` for one caption."""
    return BlipCaption(prompt, max_words)(caption)


def blip_question(question, max_words=50):
    """:class:`BlipQuestion` for one question."""
    return BlipQuestion(max_words)(question)


def first_words(text, count):
    """The first ``count`` words; words end at single spaces, so that other white space survives as in
    LAVIS."""
    return " ".join(text.split(" ")[:count])


def text_of(value):
    """The string itself; a 0-d string array, which is what ``mindspore.dataset`` hands to Python code, is
    unwrapped."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, str):
        raise TypeError(
            f"text must be a string, got {type(value).__name__} {repr(value)[:60]}: "
            "decode bytes, and pass the captions of one picture one by one"
        )
    return value
