"""Every argument of generation reaches the decoder, by whatever name it comes, and what makes no sense is
refused."""

import itertools
import logging

import numpy as np
import pytest

from mindblip2.generation.generate import GenerationConfig, LanguageGenerationConfig, complete, generate
from mindblip2.generation.generation_config import merged

VOCAB, EOS, PAD = 9, 8, 7


class Toy:
    """Logits that belong to the prompt's number and the whole text after it."""

    def __init__(self, prompts=(0,), end=0.0, vocab=VOCAB):
        self.prompts, self.end, self.vocab = list(prompts), end, vocab

    def row(self, prefix):
        values = np.random.default_rng([11, *prefix]).standard_normal(self.vocab) * 2
        values[-1] += self.end
        return values

    def first(self):
        return np.stack([self.row([prompt]) for prompt in self.prompts])

    def __call__(self, tokens_N, position, order_N):
        texts = [[prompt] for prompt in self.prompts] if position == 0 else self.texts
        self.texts = [[*texts[source], int(token)] for source, token in zip(order_N, tokens_N)]
        assert {len(text) for text in self.texts} == {position + 2}
        return np.stack([self.row(text) for text in self.texts])


def written(toy=None, prompt_BT=None, **how):
    toy = toy or Toy(range(8), end=1.0)
    how = LanguageGenerationConfig.of(how, eos_token_id=EOS, pad_token_id=PAD, max_new_tokens=8)
    return complete(toy, toy.first(), how, prompt_BT)


def text(row):
    row = list(row)
    return row[: row.index(EOS) + 1] if EOS in row else row


# ------------------------------------------------------------------------------------------------ every argum
EFFECTS = [
    ({}, {"max_new_tokens": 3}),
    ({}, {"min_new_tokens": 5}),
    ({}, {"num_beams": 1}),
    ({}, {"do_sample": True}),
    ({"do_sample": True}, {"top_p": 0.3}),
    ({"do_sample": True}, {"top_k": 1}),
    ({"do_sample": True}, {"temperature": 0.1}),
    ({"do_sample": True}, {"seed": 9}),
    ({"do_sample": True}, {"num_beams": 3}),
    ({"do_sample": True, "num_beams": 3}, {"seed": 9}),
    ({"do_sample": True, "num_beams": 3}, {"temperature": 5.0}),
    ({"do_sample": True, "num_beams": 3}, {"top_k": 1}),
    ({}, {"repetition_penalty": 3.0}),
    ({"num_beams": 1}, {"repetition_penalty": 3.0}),
    ({}, {"length_penalty": 4.0}),
    ({}, {"length_penalty": -4.0}),
    ({}, {"no_repeat_ngram_size": 1}),
    ({"num_beams": 1}, {"no_repeat_ngram_size": 1}),
    ({}, {"num_return_sequences": 3}),
    ({"do_sample": True}, {"num_return_sequences": 3}),
    ({}, {"eos_token_id": 1}),
    ({}, {"eos_token_id": (EOS, 1)}),
    ({"num_beams": 1}, {"eos_token_id": [EOS, 1]}),
    ({}, {"pad_token_id": 1}),
    ({}, {"scorer": "lavis"}),
]


@pytest.mark.parametrize("base, keyword", EFFECTS, ids=str)
def test_each_keyword_has_an_effect(base, keyword):
    assert written(**base).tolist() != written(**{**base, **keyword}).tolist()


def test_no_keyword_is_forgotten():
    assert {name for _, keyword in EFFECTS for name in keyword} == set(LanguageGenerationConfig.names())


@pytest.mark.parametrize(
    "alias, name, value",
    [
        ("max_length", "max_new_tokens", 3),
        ("min_length", "min_new_tokens", 5),
        ("num_captions", "num_return_sequences", 2),
        ("use_nucleus_sampling", "do_sample", True),
    ],
)
def test_names_of_lavis(alias, name, value):
    plain, other, same = written(), written(**{alias: value}), written(**{name: value})
    assert other.tolist() == same.tolist() != plain.tolist()
    assert written(**{alias: value, name: value}).tolist() == same.tolist()


def test_the_defaults_of_stage_2_are_those_of_lavis():
    how = LanguageGenerationConfig()
    assert (how.beams, how.max_new_tokens, how.min_new_tokens, how.top_p) == (5, 30, 1, 0.9)
    assert (how.repetition_penalty, how.length_penalty, how.temperature, how.num_return_sequences) == (
        1,
        1,
        1,
        1,
    )
    assert (
        LanguageGenerationConfig(do_sample=True).beams == 1
        and LanguageGenerationConfig(do_sample=True, num_beams=3).beams == 3
    )


def test_what_is_said_wins_over_the_defaults_of_a_model_and_none_says_nothing():
    how = LanguageGenerationConfig.of({"num_beams": 2, "top_k": None}, num_beams=4, top_k=3, max_new_tokens=7)
    assert (how.num_beams, how.top_k, how.max_new_tokens, how.top_p) == (2, 3, 7, 0.9)


# ------------------------------------------------------------------------------------------------ lengths
@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("prompt", [None, [[1, 2, 3, 4, 5]]])
def test_lengths_count_new_tokens_whatever_the_prompt(beams, prompt):
    never, at_once = Toy(end=-50.0), Toy(end=50.0)
    assert written(never, prompt, num_beams=beams, max_new_tokens=6).shape == (1, 6)
    assert written(at_once, prompt, num_beams=beams, min_new_tokens=0).tolist() == [[EOS]]
    assert text(written(at_once, prompt, num_beams=beams, min_new_tokens=4)[0]).index(EOS) == 4
    assert EOS not in written(at_once, prompt, num_beams=beams, min_new_tokens=6, max_new_tokens=6)[0]


def exhaustive(toy, length, penalty):
    """The best text of all: log-probability / (number of tokens, the end too) ** penalty."""

    def log_prob(ids):
        rows = [toy.row([0, *ids[:i]]) for i in range(len(ids))]
        return sum(row[one] - np.log(np.exp(row).sum()) for row, one in zip(rows, ids))

    texts = [[*body, EOS] for size in range(length) for body in itertools.product(range(EOS), repeat=size)]
    texts += itertools.product(range(EOS), repeat=length)
    scored = [(log_prob(ids) / len(ids) ** penalty, list(ids)) for ids in texts]
    return [ids for _, ids in sorted(scored, reverse=True)]


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -1.0])
def test_with_enough_beams_beam_search_is_exhaustive(penalty, monkeypatch):
    monkeypatch.setitem(globals(), "EOS", 2)
    toy = Toy(vocab=3, end=0.5)
    found = written(
        toy,
        max_new_tokens=4,
        min_new_tokens=0,
        num_beams=100,
        num_return_sequences=6,
        eos_token_id=2,
        pad_token_id=0,
        length_penalty=penalty,
    )
    best = exhaustive(toy, 4, penalty)
    assert text(found[0]) == best[0]
    # otherwise the search may stop when it cannot know that a better one follows
    if penalty in (0.0, 1.0):
        assert [text(row) for row in found][:3] == best[:3]


# ------------------------------------------------------------------------------------------------ several cap
def test_several_captions_of_one_prompt_are_different_and_the_first_is_the_best():
    several, one = written(num_return_sequences=4), written()
    assert several.shape[0] == 32 and one.shape[0] == 8
    assert [text(row) for row in several[::4]] == [text(row) for row in one]
    assert all(len({tuple(text(row)) for row in several[i : i + 4]}) == 4 for i in range(0, 32, 4))


def test_stage_1_returns_several_too():
    class Start(Toy):
        def __call__(self, tokens_N, position, order_N):
            self.texts = [
                [int(token)] if position == 0 else [*self.texts[source], int(token)]
                for source, token in zip(order_N, tokens_N)
            ]
            return np.stack([self.row(text) for text in self.texts])

    how = {"eos_token_id": EOS, "pad_token_id": PAD, "max_new_tokens": 5, "min_new_tokens": 0}
    starts = np.array([[0], [1]])
    one, three = (generate(Start(), starts, GenerationConfig.of({**how, "num_captions": n})) for n in (1, 3))
    assert three[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert [text(row) for row in three[::3]] == [text(row) for row in one]
    drawn = generate(
        Start(), starts, GenerationConfig.of({**how, "do_sample": True, "num_captions": 4, "top_p": 1.0})
    )
    assert drawn[:, 0].tolist() == [0] * 4 + [1] * 4 and len({tuple(row) for row in drawn[:4]}) > 1


# ------------------------------------------------------------------------------------------------ ways to fai
@pytest.mark.parametrize(
    "wrong, complaint",
    [
        ("num_beam", "no argument 'num_beam'; did you mean 'num_beams'?"),
        ("max_tokens", "did you mean 'max_new_tokens'?"),
        ("topk", "did you mean 'top_k'?"),
        ("max_lenght", "did you mean 'max_length'?"),
        ("ngram_size", "'no_repeat_ngram_size'?"),
        ("penalty_alpha", "no argument 'penalty_alpha'"),
        ("xyz", "It takes max_new_tokens, min_new_tokens, num_beams"),
    ],
)
def test_an_unknown_argument_names_the_nearest(wrong, complaint):
    with pytest.raises(TypeError) as error:
        written(**{wrong: 1})
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    "how, complaint",
    [
        (
            {"max_length": 5, "max_new_tokens": 8},
            "max_length = 5 and max_new_tokens = 8 are the same argument",
        ),
        ({"top_k": -1}, "top_k = -1"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size = -2"),
        ({"num_beams": 0}, "num_beams = 0: "),
        ({"do_sample": True, "num_beams": 0}, "num_beams = 0: "),
        ({"num_return_sequences": 6}, "5 beams find at most 5"),
        ({"num_return_sequences": 2, "num_beams": 1}, "1 beams find at most 1 .*do_sample=True"),
        ({"num_captions": 0}, "= 0: "),
        ({"scorer": "hf"}, "expected 'lavis' or 'transformers'"),
        ({"min_new_tokens": 9}, "min_new_tokens = 9, max_new_tokens = 8"),
        (
            {"eos_token_id": 50118},
            "eos_token_id = 50118 lies outside the model's vocabulary of 9: give the end token of the "
            "model's",
        ),
    ],
)
def test_impossible_settings_are_errors(how, complaint):
    with pytest.raises(ValueError, match=complaint):
        written(**how)


@pytest.mark.parametrize(
    "name, wrong, expected, right",
    [
        ("max_new_tokens", "5", "a whole number of at least 1", np.int64(5)),
        ("max_new_tokens", 5.0, "a whole number of at least 1", 5),
        ("max_new_tokens", True, "a whole number of at least 1", 1),
        ("min_new_tokens", "1", "a whole number of at least 0", 0),
        ("num_beams", 2.5, "a whole number of at least 1", 2),
        ("length_penalty", float("nan"), "a finite number", -2),
        ("length_penalty", float("inf"), "a finite number", 0),
        ("temperature", float("inf"), "a finite number above 0", np.float32(0.5)),
        ("repetition_penalty", float("nan"), "a finite number above 0", 2),
        ("repetition_penalty", "1.5", "a finite number above 0", 1.5),
        ("top_p", float("nan"), "a number above 0 and at most 1", 1),
        ("top_k", 2.0, "a number of tokens, or 0 for no limit", 2),
        ("do_sample", "yes", "true or false", np.bool_(True)),
        ("seed", -1, "a whole number of at least 0", 2**40),
        ("seed", None, "a whole number of at least 0", 0),
        ("pad_token_id", -1, "a token id", 0),
        ("eos_token_id", "2", "a token id, several, or null for none", 2),
        ("eos_token_id", [2, "9"], "a token id, several", [2, 8]),
        ("no_repeat_ngram_size", float("nan"), "a number of tokens", 3),
        ("num_return_sequences", "2", "a whole number of at least 1", 2),
    ],
    ids=str,
)
def test_b13_each_number_is_checked_by_its_name(name, wrong, expected, right):
    with pytest.raises(ValueError, match=f"^{name} = .*: expected {expected}"):
        LanguageGenerationConfig(**{name: wrong})
    # control
    LanguageGenerationConfig(**{name: right, "do_sample": True} if name != "do_sample" else {name: right})


def test_b13_a_nan_is_not_called_two_arguments():
    with pytest.raises(ValueError, match="^length_penalty = nan: expected a finite number$"):
        LanguageGenerationConfig.of({"length_penalty": float("nan")})


def test_b13_a_later_place_goes_over_an_earlier_one_under_any_name():
    preset, call = {"max_new_tokens": 20, "num_beams": 3}, {"max_length": 30}
    assert LanguageGenerationConfig.of(merged(preset, call)).max_new_tokens == 30
    assert merged(preset, call, {"max_new_tokens": 7}) == {"num_beams": 3, "max_new_tokens": 7}
    assert LanguageGenerationConfig.of(merged(call, preset)).max_new_tokens == 20
    # control: in one place
    with pytest.raises(ValueError, match="max_length = 30 and max_new_tokens = 20 are the same argument"):
        LanguageGenerationConfig.of(merged({"max_length": 30, "max_new_tokens": 20}))


@pytest.mark.parametrize("beams", [1, 3])
def test_logits_that_are_no_numbers_are_an_error(beams):
    toy = Toy(end=-50.0)
    toy.row = lambda prefix: np.full(VOCAB, np.nan) if len(prefix) == 3 else Toy().row(prefix)
    with pytest.raises(ValueError, match="logits of new token 3 hold NaN"):
        written(toy, num_beams=beams, min_new_tokens=5)


def test_an_argument_without_effect_is_said(caplog):
    with caplog.at_level(logging.WARNING, "mindblip2"):
        written(temperature=0.5, top_k=3)
        assert "top_k, temperature: without effect unless do_sample=True" in caplog.text
        caplog.clear()
        written(temperature=0.5, do_sample=True)
        LanguageGenerationConfig.of({}, top_p=1.0, top_k=1)  # defaults of a model's configuration
        assert not caplog.text
