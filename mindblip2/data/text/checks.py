"""What is looked at before a model reads texts: tokens that its vocabulary lacks, ends that are cut off,
labels that it cannot tell apart.

T texts · L tokens
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from mindblip2.data.text.cleaning import BlipCaption
from mindblip2.data.text.prompting import plain_ids

logger = logging.getLogger("mindblip2")

# share of unknown tokens up to which captions are called sound; English under BERT's vocabulary has about 0
MAX_UNKNOWN = 0.05
SHOWN = 5  # examples in a message


class Known(NamedTuple):
    """What a tokenizer knows of one text: how many tokens it has, how many are unknown, and in which words
    these are."""

    tokens: int
    unknown: int
    words: tuple


def unknown_id(tokenizer: Any) -> int | None:
    """The id that stands for what is not in the vocabulary; None where the tokenizer can write everything
    (bytes)."""
    return getattr(tokenizer, "unknown_id", getattr(tokenizer, "unk_token_id", None))


def known(tokenizer: Any, text: str) -> Known:
    """What ``tokenizer`` knows of ``text``, without the special tokens around it."""
    ids, unknown = plain_ids(tokenizer, text), unknown_id(tokenizer)
    count = 0 if unknown is None else list(ids).count(unknown)
    words = (
        tuple(dict.fromkeys(word for word in text.split() if unknown in plain_ids(tokenizer, word)))
        if count
        else ()
    )
    return Known(len(ids), count, words)


def warn_truncated(
    tokenizer: Any, texts: Sequence[str], masks: Any, length: int, key: str, what: str = "texts"
) -> int:
    """Warn of texts that lost their end; returns how many did.

    ``masks``: the rows of the attention mask of ``texts`` as they were cut at ``length`` tokens; only a row
    without padding can have been cut.  ``key``: what sets the limit, for the message."""
    cut = [
        text
        for text, row in zip(texts, masks)
        if len(row) >= length
        and all(row)
        and len(tokenizer(text, padding=False, truncation=False)["input_ids"]) > length
    ]
    if cut:
        logger.warning(
            "%d of %d %s have more than %d tokens and lose their end, so what differs only there is the same "
            "to the model: "
            "%s; raise %s, or shorten them",
            len(cut),
            len(texts),
            what,
            length,
            _some(cut),
            key,
        )
    return len(cut)


def cleaned(captions: Sequence[str], clean: BlipCaption) -> list[str]:
    """Captions as the Q-Former reads them.  Warns of those with more than ``clean.max_words`` words, which
    lose their end; raises ValueError for one of which nothing is left."""
    whole, texts = replace(clean, max_words=None), [clean(caption) for caption in captions]
    empty = [caption for caption, text in zip(captions, texts) if text == clean.prompt and caption]
    if empty:
        raise ValueError(
            f"nothing is left of {_some(empty)} when punctuation is removed, as in all captions for the "
            "Q-Former; remove it"
        )
    cut = [caption for caption, text in zip(captions, texts) if whole(caption) != text]
    if cut:
        logger.warning(
            "%d of %d texts have more than %d words and lose their end: %s",
            len(cut),
            len(texts),
            clean.max_words,
            _some(cut),
        )
    return texts


def split_labels(labels: Any) -> list:
    """A list of labels; one string is split at its commas, as transformers does."""
    if isinstance(labels, str):
        return [label.strip() for label in labels.split(",") if label.strip()]
    return list(labels or ())


def check_labels(
    tokenizer: Any, labels: Sequence[str], texts: Sequence[str], encoded: dict, template: str
) -> None:
    """Raise ValueError, naming the labels, where scores would mean nothing: labels of which the vocabulary
    has no token, and labels that have the same tokens.  Warn of unknown words in others, and of labels that
    are cut.

    ``texts``: the labels in their ``template``; ``encoded``: their "input_ids" and "attention_mask", arrays
    (T, L)."""
    found = {label: known(tokenizer, label) for label in labels}
    nothing = [label for label, one in found.items() if one.unknown == one.tokens]
    if nothing:
        raise ValueError(
            f"the tokenizer knows no token of {len(nothing)} of {len(labels)} labels ({_some(nothing)}), so "
            "their scores "
            f"would mean nothing: its vocabulary has {len(tokenizer)} tokens "
            f"({getattr(tokenizer, 'vocab_file', tokenizer)}). "
            "Name labels in its words, or use a model with another vocabulary"
        )
    ids_TL = encoded["input_ids"]
    cut = warn_truncated(
        tokenizer, texts, encoded["attention_mask"], ids_TL.shape[1], "max_length", "label texts"
    )
    same: dict = {}
    for label, row in zip(labels, ids_TL):
        same.setdefault(row.tobytes(), []).append(label)
    alike = [own for own in same.values() if len(own) > 1]
    if alike:
        raise ValueError(
            f"the labels {_some(alike[0])} have the same tokens"
            + (f" (of {ids_TL.shape[1]} at most)" if cut else "")
            + f" as {template!r}: no score can tell them apart.  Remove all but one, or write them in other words"
            + (", or raise max_length" if cut else "")
        )
    partly = [f"{label!r} ({', '.join(one.words)})" for label, one in found.items() if one.unknown]
    if partly:
        logger.warning(
            "the tokenizer does not know all words of %d of %d labels: %s; they count as [UNK]",
            len(partly),
            len(labels),
            ", ".join(partly[:SHOWN]) + (", …" if len(partly) > SHOWN else ""),
        )
    around = known(tokenizer, template.replace("{}", " "))
    if around.unknown:
        logger.warning(
            "the tokenizer does not know %s of hypothesis_template = %r: choose one in words of the "
            "vocabulary",
            ", ".join(map(repr, around.words)),
            template,
        )


class UnknownCount:
    """Counts the unknown tokens of training batches, and warns once, after ``enough`` texts or when told that
    there are no more; of several processes only one ``speaks``."""

    def __init__(self, tokenizer: Any, speaks: bool = True, enough: int = 100):
        self.unknown, self.enough = unknown_id(tokenizer), enough
        self.texts = self.tokens = self.found = 0
        self.done = self.unknown is None or not speaks

    def add(self, ids_TL: np.ndarray, length_T: np.ndarray) -> None:
        """Count a batch: padded rows of ids, and how many of each are text."""
        if self.done:
            return
        text_TL = np.arange(ids_TL.shape[1]) < np.asarray(length_T)[:, None]
        self.texts, self.tokens = self.texts + len(ids_TL), self.tokens + int(text_TL.sum())
        self.found += int((text_TL & (ids_TL == self.unknown)).sum())
        if self.texts >= self.enough:
            self.end()

    def end(self) -> None:
        """Warn, if there is a reason."""
        if not self.done and self.found > MAX_UNKNOWN * self.tokens:
            logger.warning(
                "the tokenizer does not know %.1f %% of the tokens of the first %d captions: is the "
                "vocabulary that of their "
                "language?  run_blip2.py --run_mode check shows which words",
                100 * self.found / self.tokens,
                self.texts,
            )
        self.done = True


def _some(texts):
    shown = [repr(text if len(text) <= 60 else f"{text[:60]}…") for text in texts[:SHOWN]]
    return ", ".join(shown) + (", …" if len(texts) > SHOWN else "")
