"""How text is generated: every argument, checked, with the defaults of stage 1 (LAVIS's Q-Former) and of
stage 2 (LAVIS's OPT).

B prompts · N = B × beams or captions, rows of the decoder
"""

import dataclasses
import difflib
import logging
import math
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from mindblip2.config.language_model import GENERATION_ALIASES as ALIASES

logger = logging.getLogger("mindblip2")

SAMPLING = ("top_p", "top_k", "temperature", "seed")  # without effect on greedy and beam search


class UnknownArgument(TypeError, ValueError):
    """TypeError as of any call; ValueError so that a command line says it in one line."""


@dataclass(frozen=True)
class GenerationConfig:
    """How stage 1 writes captions.  Lengths count generated tokens only, neither the start token nor a
    prompt."""

    max_new_tokens: int = 29  # the end token included; LAVIS: max_length 30 with [DEC]
    min_new_tokens: int = 9  # before the end token; LAVIS: min_length 10 with [DEC]
    num_beams: int = 3
    do_sample: bool = False  # draw tokens; stage 1 then uses one beam, as LAVIS
    top_p: float = 0.9  # drawn from the fewest tokens that have this probability together
    top_k: int = 0  # drawn from this many tokens; 0: no limit
    temperature: float = 1.0  # below 1 likely tokens become likelier
    # above 1 tokens that are there already become less likely, those of a prompt included
    repetition_penalty: float = 1.0
    # of beams: the log-probability is divided by length ** this; above 0 favours long captions
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0  # so many tokens in a row never occur twice; 0: no limit
    # captions per picture, the best first; at most num_beams, or any number of drawn ones
    num_return_sequences: int = 1
    # of the draws; they depend on it alone, not on the place of a picture in its batch
    seed: int = 0
    eos_token_id: int | tuple = 102  # or several ids, each of which ends a caption
    pad_token_id: int = 0  # after the end
    scorer: str = "lavis"  # of beams, see mindblip2.generation.beam_search

    def __post_init__(self):
        if isinstance(self.eos_token_id, list):
            object.__setattr__(self, "eos_token_id", tuple(self.eos_token_id))
        for name, (expected, fits) in _EXPECTED.items():
            if not fits(getattr(self, name)):
                raise ValueError(f"{name} = {getattr(self, name)!r}: expected {expected}")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens = {self.min_new_tokens}, max_new_tokens = {self.max_new_tokens}: expected "
                "min_new_tokens <= max_new_tokens"
            )
        most = self.beams if self.beams > 1 or not self.do_sample else self.num_return_sequences
        if self.num_return_sequences > most:
            raise ValueError(
                f"num_return_sequences = {self.num_return_sequences}: {most} beams find at most {most} "
                "captions; raise "
                "num_beams, or use do_sample=True with num_beams=1 for any number"
            )

    @classmethod
    def of(cls, keywords, **defaults):
        """From the keywords of a user's call, over ``defaults``, over the class's.

        ``max_length`` and ``min_length`` are other names of ``max_new_tokens`` and ``min_new_tokens`` (so
        they count no prompt), ``num_captions`` and ``use_nucleus_sampling`` (LAVIS) of
        ``num_return_sequences`` and ``do_sample``.  None leaves an argument at its default.

        Raises UnknownArgument for an unknown name, with the nearest; ValueError for an argument given twice
        or out of range."""
        said = {}
        for name, value in keywords.items():
            own = ALIASES.get(name, name)
            if own not in cls.names():
                near = difflib.get_close_matches(name, [*cls.names(), *ALIASES], 1, 0.5)
                raise UnknownArgument(
                    f"generate has no argument {name!r}"
                    + (f"; did you mean {near[0]!r}?" if near else "")
                    + f"  It takes {', '.join(cls.names())}"
                )
            if value is None:
                continue
            other, before = said.get(own, (name, value))
            if before is not value and before != value:
                raise ValueError(
                    f"{other} = {before} and {name} = {value} are the same argument; give one of them"
                )
            said[own] = name, value
        generation_config = cls(**{**defaults, **{own: value for own, (_, value) in said.items()}})
        idle = [name for name in SAMPLING if name in said and not generation_config.do_sample]
        if idle:
            logger.warning("%s: without effect unless do_sample=True", ", ".join(idle))
        return generation_config

    @classmethod
    def names(cls):
        """What can be said about generation."""
        return [field.name for field in dataclasses.fields(cls)]

    @property
    def ends(self):
        """The ids that end a caption, as a tuple."""
        if self.eos_token_id is None:
            return ()
        return self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)

    @property
    def beams(self):
        """Beams that are kept; 1 for greedy search and for tokens drawn one by one."""
        return 1 if self.do_sample else self.num_beams

    @property
    def rows(self):
        """Rows of the decoder per prompt: N / B."""
        return max(self.beams, self.num_return_sequences)


@dataclass(frozen=True)
class LanguageGenerationConfig(GenerationConfig):
    """How a language model writes (stage 2): LAVIS's defaults for OPT, the scores of today's transformers."""

    max_new_tokens: int = 30
    min_new_tokens: int = 1
    # None: 5 as LAVIS, but 1 with do_sample; more with do_sample: beams are drawn
    num_beams: int | None = None  # type: ignore[assignment]
    eos_token_id: int | tuple = 2
    scorer: str = "transformers"

    @property
    def beams(self):
        if self.num_beams is None:
            return 1 if self.do_sample else 5
        return self.num_beams


def merged(*layers):
    """Generation arguments from several places as one dict; a later layer goes over the earlier ones,
    whichever of its names an argument has there (``max_length`` of a call goes over ``max_new_tokens`` of a
    preset)."""
    found = {}
    for layer in layers:
        given = {ALIASES.get(name, name) for name in layer}
        found = {
            **{name: value for name, value in found.items() if ALIASES.get(name, name) not in given},
            **layer,
        }
    return found


def _whole(value, least):
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def _number(value):
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _at_least(least):
    return f"a whole number of at least {least}", lambda value: _whole(value, least)


# What each argument may be, in words and as a test.
_EXPECTED = {
    "max_new_tokens": _at_least(1),
    "min_new_tokens": _at_least(0),
    "num_return_sequences": _at_least(1),
    "seed": _at_least(0),
    "num_beams": ("a whole number of at least 1", lambda value: value is None or _whole(value, 1)),
    "do_sample": ("true or false", lambda value: isinstance(value, (bool, np.bool_))),
    "top_p": ("a number above 0 and at most 1", lambda value: _number(value) and 0 < value <= 1),
    "top_k": ("a number of tokens, or 0 for no limit", lambda value: _whole(value, 0)),
    "no_repeat_ngram_size": ("a number of tokens, or 0 for no limit", lambda value: _whole(value, 0)),
    "temperature": ("a finite number above 0", lambda value: _number(value) and value > 0),
    "repetition_penalty": ("a finite number above 0", lambda value: _number(value) and value > 0),
    "length_penalty": ("a finite number", _number),
    "eos_token_id": (
        "a token id, several, or null for none",
        lambda value: (
            value is None
            or _whole(value, 0)
            or (isinstance(value, tuple) and all(_whole(one, 0) for one in value))
        ),
    ),
    "pad_token_id": ("a token id", lambda value: _whole(value, 0)),
    "scorer": ("'lavis' or 'transformers'", lambda value: value in ("lavis", "transformers")),
}
