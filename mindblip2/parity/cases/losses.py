"""The losses, part by part, on seeded random features and logits: no weights but the temperature.

A single loss has no noise statistics, so every case stacks those of several batches; a tiny vocabulary does.

    # N problems · B batch · Q queries · E embed · T text · V vocabulary
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from mindblip2.parity import seeded_weights
from mindblip2.parity.candidate.stage1 import ours_of
from mindblip2.parity.model_triple import Case
from mindblip2.parity.reference import losses

N, B, Q, E, T, V = 12, 5, 4, 32, 9, 40
IMAGE_ID = np.array([7, 3, 7, 11, 3])  # who shares a picture


def loss_cases() -> Iterator[Case]:
    """ITC in its variants, negatives, ITM, LM, zero-shot probabilities."""
    features = {
        "image": draw("image", N, B, Q, E),
        "text": draw("text", N, B, E),
        "temp": 0.1 + 0.02 * np.abs(draw("temp", N)),
    }
    with_ids = {"image_id": np.stack([np.roll(IMAGE_ID, n) for n in range(N)])}
    for name, more, gather in (
        ("itc", {}, False),
        ("itc.gather_with_grad", {}, True),
        ("itc.image_id", with_ids, False),
    ):
        yield Case(name, partial(their_itc, gather=gather), ours_of(name), features | more, backward=True)
    for name, more in (("negatives", {}), ("negatives.image_id", with_ids)):
        yield Case(name, their_negatives, ours_of(name), {"sim": 5 * draw("sim", N, B, B)} | more)
    yield Case(
        "itm", each(losses.itm), ours_of("itm"), {"logits": 2 * draw("itm", N, 3 * B, 2)}, backward=True
    )
    yield Case(
        "lm",
        each(their_lm),
        ours_of("lm"),
        {"logits": 2 * draw("lm", N, B, T, V), "ids": captions()},
        backward=True,
    )
    yield Case(
        "classifier",
        their_probabilities,
        ours_of("classifier"),
        {"image": features["image"][0], "text": features["text"][1]},
    )


def draw(name: str, *shape: int) -> np.ndarray:
    """Seeded standard normal numbers."""
    return seeded_weights.normal(2, name, shape)


def captions() -> np.ndarray:
    """Ids (N, B, T) of texts of different lengths, the rest 0, [PAD]."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(2, T + 1, (N, B, 1))
    return np.where(np.arange(T) < lengths, rng.integers(1, V, (N, B, T)), 0)


def each(loss):
    """Apply a loss of torch's to each of the stacked problems -> a function of a twin and (N, …) tensors,
    with values (N,)."""

    def stacked(_, **tensors):
        return torch.stack([loss(*problem) for problem in zip(*tensors.values(), strict=True)])

    return stacked


def their_itc(_, image, text, temp, gather: bool, image_id=None):
    """Losses (N,) and the similarities in both directions (N, B, B)."""
    unit = torch.nn.functional.normalize
    found = []
    for n in range(N):
        sims = losses.similarities(unit(image[n], dim=-1), unit(text[n], dim=-1), temp[n], gather)
        found.append((losses.itc(*sims, None if image_id is None else image_id[n]), *sims))
    return tuple(torch.stack(values) for values in zip(*found, strict=True))


def their_negatives(_, sim, image_id=None):
    """The likeliest negative of each row, (N, B), as numbers to be met exactly."""
    chosen = [
        losses.hard_negatives(x, x.T, None if image_id is None else image_id[n]) for n, x in enumerate(sim)
    ]
    return tuple(torch.stack(values).to(sim.dtype) for values in zip(*chosen, strict=True))


def their_lm(logits, ids):
    return losses.lm(logits, ids.masked_fill(ids == 0, losses.IGNORED))


def their_probabilities(twin, image, text):
    """softmax over labels of similarity / temp, the best query counting, or the first."""
    image = image[:, :1] if twin.config.query_reduce == "first" else image
    unit = torch.nn.functional.normalize
    sims, _ = losses.similarities(unit(image, dim=-1), unit(text, dim=-1), twin.temp)
    return sims.softmax(1)
