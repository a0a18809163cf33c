"""GenerationConfig against brute force on a toy model whose next token depends on everything before it."""

import itertools

import numpy as np
import pytest

from mindblip2.generation.generate import GenerationConfig, generate

VOCAB, EOS, PAD = 14, 13, 12


class Toy:
    """A step function without a cache: the logits are random numbers that belong to the whole prefix."""

    def __init__(self, end=0.0, vocab=VOCAB, seed=7):
        self.end, self.vocab, self.seed = end, vocab, seed

    def logits(self, prefix):
        values = np.random.default_rng([self.seed, *prefix]).standard_normal(self.vocab) * 2
        values[-1] += self.end
        return values.astype(np.float32)

    def log_probs(self, prefix):
        logits = self.logits(prefix).astype(np.float64)
        return logits - np.log(np.exp(logits).sum())

    def __call__(self, tokens_N, position, order_N):
        column = np.asarray(tokens_N)[:, None]
        self.ids = column if position == 0 else np.concatenate([self.ids[order_N], column], 1)
        assert self.ids.shape[1] == position + 1
        return np.stack([self.logits(row) for row in self.ids.tolist()])


def decode(toy=None, start=((0,),), **how):
    how = {
        "max_new_tokens": 6,
        "min_new_tokens": 0,
        "num_beams": 1,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        **how,
    }
    return generate(toy or Toy(), start, GenerationConfig(**how))


def caption(row):
    """A row without its padding."""
    row = list(row)
    return row[: row.index(EOS) + 1] if EOS in row else row


# ------------------------------------------------------------------------------------------------ greedy
@pytest.mark.parametrize("start", range(6))
def test_greedy_takes_the_likeliest_token_each_time(start):
    prefix = [start]
    while len(prefix) < 7 and (len(prefix) == 1 or prefix[-1] != EOS):
        prefix.append(int(Toy().logits(prefix).argmax()))
    assert decode(start=[[start]]).tolist() == [prefix]


# ------------------------------------------------------------------------------------------------ beam search
def exhaustive(toy, start, length, penalty, shortest=0):
    """The best of all captions: log-probability / (length without the end token) ** penalty."""
    best = (-np.inf, None)
    for size in range(shortest, length + 1):
        for body in itertools.product(range(toy.vocab - 1), repeat=size):
            ids = [start, *body] + ([toy.vocab - 1] if size < length else [])
            total = sum(toy.log_probs(ids[:i])[ids[i]] for i in range(1, len(ids)))
            best = max(best, (total / (size + 1) ** penalty, ids))
    return best[1]


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize("start, end", [(0, 0.0), (1, 2.0), (2, 4.0)])
def test_with_enough_beams_beam_search_is_exhaustive(penalty, start, end):
    toy = Toy(end=end, vocab=3)
    found = decode(
        toy,
        [[start]],
        max_new_tokens=5,
        num_beams=200,
        length_penalty=penalty,
        eos_token_id=2,
        pad_token_id=0,
    )
    assert found.tolist() == [exhaustive(toy, start, 5, penalty)]


@pytest.mark.parametrize("shortest", [1, 3, 4])
def test_beam_search_keeps_the_minimal_length(shortest):
    toy = Toy(end=6.0, vocab=3)
    found = decode(
        toy, max_new_tokens=5, min_new_tokens=shortest, num_beams=200, eos_token_id=2, pad_token_id=0
    )
    assert found.tolist() == [exhaustive(toy, 0, 5, 1.0, shortest)]


def test_more_beams_find_better_captions():
    def score(toy, row):
        row = caption(row)
        total = sum(toy.log_probs(row[:i])[row[i]] for i in range(1, len(row)))
        return total / (len(row) - (row[-1] == EOS))

    toys = [Toy(seed=seed) for seed in range(30)]
    means = [np.mean([score(toy, decode(toy, num_beams=beams)[0]) for toy in toys]) for beams in (1, 2, 8)]
    assert means[0] < means[1] < means[2]


# ------------------------------------------------------------------------------------------------ other imple
@pytest.mark.parametrize("beams", [1, 2, 3, 5])
def test_beam_search_is_that_of_the_torch_twin(beams):
    torch = pytest.importorskip("torch")
    from mindblip2.parity.reference import generate as reference

    toy, starts = Toy(end=2.0, vocab=11), np.arange(20)[:, None]
    rules = reference.Rules(max_length=9, min_length=4, end=10, pad=0)

    def step(new, cache):
        ids = torch.cat([cache[0][0], new.double()], 1)
        logits = np.stack([toy.logits(row) for row in ids.long().tolist()])
        return torch.from_numpy(logits).double(), [(ids, ids)]

    rows = torch.from_numpy(starts.repeat(beams, 0))
    empty = torch.zeros(len(rows), 0, dtype=torch.float64)
    expected = (
        reference.greedy(step, rows, [(empty, empty)], rules)
        if beams == 1
        else reference.beam(step, rows, [(empty, empty)], rules, beams)[0]
    )
    found = decode(
        toy, starts, max_new_tokens=8, min_new_tokens=3, num_beams=beams, eos_token_id=10, pad_token_id=0
    )
    assert found.tolist() == expected.tolist()


@pytest.fixture(scope="module")
def gpt2():
    """A random language model of transformers, and its step function."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=17,
            n_positions=16,
            n_embd=16,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=16,
            initializer_range=0.9,
        )
    ).eval()

    class Step:
        def __call__(self, tokens_N, position, order_N):
            column = torch.from_numpy(tokens_N[:, None].astype(np.int64))
            self.ids = column if position == 0 else torch.cat([self.ids[order_N], column], 1)
            with torch.no_grad():
                return model(self.ids).logits[:, -1].numpy()

    return model, Step


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6},
        {"min_new_tokens": 7},
        {"num_beams": 3},
        {"num_beams": 4, "repetition_penalty": 1.7},
        {"num_beams": 4, "repetition_penalty": 0.6},
        {"num_beams": 3, "min_new_tokens": 7},
        {"num_beams": 5, "min_new_tokens": 2, "repetition_penalty": 1.2},
    ],
    ids=str,
)
def test_the_ids_are_those_of_transformers(gpt2, how):
    """With length_penalty 0, since transformers from 4.36 on does not count the given ids in a length."""
    torch = pytest.importorskip("torch")
    model, step = gpt2
    how = {"num_beams": 1, "length_penalty": 0.0, "max_new_tokens": 10, "min_new_tokens": 0, **how}
    starts = np.arange(4)[:, None]
    theirs = model.generate(
        torch.from_numpy(starts), attention_mask=torch.ones(4, 1), pad_token_id=1, do_sample=False, **how
    )
    ours = generate(step(), starts, GenerationConfig(eos_token_id=16, pad_token_id=1, **how))
    assert [row[: row.index(16) + 1] if 16 in row else row for row in ours.tolist()] == [
        row[: row.index(16) + 1] if 16 in row else row for row in theirs.tolist()
    ]


# ------------------------------------------------------------------------------------------------ sampling
class Fixed:
    """The same probabilities whatever was said."""

    def __init__(self, *probs):
        self.logits = np.log(np.maximum(probs, 1e-30))

    def __call__(self, tokens_N, position, order_N):
        return np.repeat(self.logits[None], len(tokens_N), 0)


def drawn(probs, rows=4000, **how):
    """How often each token is drawn by one step."""
    ids = generate(
        Fixed(*probs),
        [[0]],
        GenerationConfig(
            do_sample=True,
            max_new_tokens=1,
            min_new_tokens=0,
            seed=3,
            num_return_sequences=rows,
            eos_token_id=len(probs) - 1,
            **how,
        ),
    )
    return np.bincount(ids[:, 1], minlength=len(probs))


def assert_drawn_from(counts, probs):
    """Chi-square at 1 in 1000, and never what has no probability."""
    expected = np.array(probs) / np.sum(probs) * counts.sum()
    assert not counts[expected == 0].any()
    chi = ((counts - expected)[expected > 0] ** 2 / expected[expected > 0]).sum()
    assert chi < {0: 1e-9, 1: 10.8, 2: 13.8, 3: 16.3, 4: 18.5}[(expected > 0).sum() - 1]


@pytest.mark.parametrize(
    "how, kept",
    [
        ({"top_p": 1.0}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        # .4 + .3 + .15 = .85 < .9: the next one crosses the line and stays
        ({"top_p": 0.9}, [0.1, 0.4, 0.0, 0.3, 0.15]),
        ({"top_p": 0.84}, [0.0, 0.4, 0.0, 0.3, 0.15]),
        ({"top_p": 0.69}, [0.0, 0.4, 0.0, 0.3, 0.0]),
        ({"top_p": 0.39}, [0.0, 0.4, 0.0, 0.0, 0.0]),
        ({"top_p": 1e-9}, [0.0, 0.4, 0.0, 0.0, 0.0]),
        ({"top_p": 1.0, "top_k": 2}, [0.0, 0.4, 0.0, 0.3, 0.0]),
        (
            {"top_p": 0.5, "top_k": 2},
            [0.0, 0.4, 0.0, 0.0, 0.0],
        ),  # the share is counted among the two: .4 / .7 > .5
        ({"top_p": 1.0, "top_k": 99}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"top_p": 1.0, "temperature": 0.5}, [0.01, 0.16, 0.0025, 0.09, 0.0225]),
        ({"top_p": 1.0, "temperature": 1e-3}, [0.0, 0.4, 0.0, 0.0, 0.0]),
    ],
    ids=str,
)
def test_tokens_are_drawn_from_the_nucleus(how, kept):
    assert_drawn_from(drawn([0.1, 0.4, 0.05, 0.3, 0.15], **how), kept)


def test_a_share_that_is_reached_exactly_is_enough():
    assert_drawn_from(drawn([0.25, 0.5, 0.25], top_p=0.5), [0, 1, 0])


def test_a_wrong_distribution_would_be_noticed():
    with pytest.raises(AssertionError):
        assert_drawn_from(drawn([0.1, 0.4, 0.05, 0.3, 0.15], top_p=1.0), [0.15, 0.4, 0.05, 0.3, 0.1])


def test_the_end_token_is_not_drawn_too_early():
    ids = generate(
        Fixed(0.1, 0.1, 0.8),
        [[0]],
        GenerationConfig(
            do_sample=True,
            max_new_tokens=6,
            min_new_tokens=3,
            eos_token_id=2,
            top_p=1.0,
            num_return_sequences=500,
        ),
    )
    assert not (ids[:, :4] == 2).any() and 0.75 < (ids[:, 4] == 2).mean() < 0.85


def test_a_seed_decides_the_draws():
    one, same, other = (
        decode(do_sample=True, top_p=1.0, seed=seed, num_return_sequences=20).tolist() for seed in (5, 5, 6)
    )
    assert one == same != other
    assert len({tuple(row) for row in one}) > 10  # captions of a prompt draw for themselves
    # prompts do not
    assert (
        decode(do_sample=True, top_p=1.0, seed=5, start=[[0]] * 3).tolist()
        == [one[0][: len(caption(one[0]))]] * 3
    )


def test_an_end_token_outside_the_best_beams_ends_nothing():
    """With length_penalty -1 short captions win, so an end that counts is taken at once."""
    ends = [
        EOS in decode(Fixed(0.4, 0.35, *[0] * 11, 0.25), num_beams=beams, length_penalty=-1.0)[0]
        for beams in (2, 3)
    ]
    assert ends == [False, True]


# ------------------------------------------------------------------------------------------------ every keywo
@pytest.mark.parametrize(
    "base, keyword",
    [
        ({}, {"max_new_tokens": 3}),
        ({"max_new_tokens": 20}, {"min_new_tokens": 15}),
        ({}, {"num_beams": 4}),
        ({}, {"do_sample": True}),
        ({"do_sample": True}, {"top_p": 0.3}),
        ({"do_sample": True}, {"top_k": 1}),
        ({"do_sample": True}, {"temperature": 0.1}),
        ({"do_sample": True}, {"seed": 9}),
        ({}, {"repetition_penalty": 3.0}),
        ({"num_beams": 4}, {"repetition_penalty": 3.0}),
        ({"num_beams": 4}, {"length_penalty": 4.0}),
        ({"num_beams": 4}, {"length_penalty": -4.0}),
        ({}, {"eos_token_id": 1}),
        ({}, {"pad_token_id": 1}),
    ],
    ids=str,
)
def test_each_keyword_has_an_effect(base, keyword):
    starts = np.arange(12)[:, None]
    toy = Toy(end=2.0)
    assert decode(toy, starts, **base).tolist() != decode(toy, starts, **{**base, **keyword}).tolist()


def test_lengths_count_generated_tokens():
    for beams in (1, 3):
        never, at_once = Toy(end=-50.0), Toy(end=50.0)
        assert decode(never, max_new_tokens=6, num_beams=beams).shape == (1, 7)
        assert decode(at_once, num_beams=beams).tolist() == [[0, EOS]]
        assert caption(decode(at_once, min_new_tokens=4, num_beams=beams)[0]).index(EOS) == 5
        assert EOS not in decode(at_once, min_new_tokens=6, max_new_tokens=6, num_beams=beams)[0]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_penalty_against_repetition_ends_a_loop(beams):
    class Loop(Toy):
        def logits(self, prefix):
            return np.array([1.0, 3.0, 2.5, 2.4] + [0.0] * (VOCAB - 4), np.float32)

    assert decode(Loop(), num_beams=beams)[0, 1:].tolist() == [1] * 6
    assert (
        len(set(decode(Loop(), num_beams=beams, repetition_penalty=5.0, max_new_tokens=3)[0, 1:].tolist()))
        == 3
    )


def test_long_and_short_captions_by_length_penalty():
    def words(penalty):
        rows = decode(
            Toy(end=3.0), np.arange(12)[:, None], num_beams=4, length_penalty=penalty, max_new_tokens=8
        )
        return np.mean([len(caption(row)) for row in rows])

    assert words(-2.0) < words(1.0) < words(4.0)


# ------------------------------------------------------------------------------------------------ batches
@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"num_beams": 3, "repetition_penalty": 1.5, "min_new_tokens": 2}], ids=str
)
def test_a_batch_gives_what_its_rows_give_alone(how):
    starts = np.arange(10)[:, None]
    batch = decode(Toy(end=3.0), starts, **how)
    alone = [decode(Toy(end=3.0), start[None], **how)[0] for start in starts]
    assert [caption(row) for row in batch.tolist()] == [caption(row) for row in alone]
    assert len({len(caption(row)) for row in batch.tolist()}) > 2  # they end at different times


@pytest.mark.parametrize("beams", [1, 3])
def test_after_the_end_there_is_padding_only(beams):
    batch = decode(Toy(end=3.0), np.arange(10)[:, None], num_beams=beams)
    assert batch.dtype == np.int32
    for row in batch.tolist():
        assert set(row[len(caption(row)) :]) <= {PAD}


@pytest.mark.parametrize(
    "how, complaint",
    [
        ({"max_new_tokens": 0}, "max_new_tokens = 0: expected a whole number of at least 1"),
        ({"min_new_tokens": 7}, "min_new_tokens = 7, max_new_tokens = 6"),
        ({"min_new_tokens": -1}, "of at least 0"),
        ({"num_beams": 0}, "num_beams = 0: expected a whole number of at least 1"),
        ({"top_p": 0.0}, "top_p = 0.0: expected a number above 0 and at most 1"),
        ({"top_p": 1.1}, "above 0 and at most 1"),
        ({"temperature": 0.0}, "above 0"),
        ({"repetition_penalty": 0.0}, "above 0"),
    ],
)
def test_impossible_settings_are_errors(how, complaint):
    with pytest.raises(ValueError, match=complaint):
        decode(**how)
