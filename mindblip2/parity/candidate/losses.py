"""Our side of the cases of the losses (mindblip2/parity/cases/losses.py): several problems stacked along a
first axis, N.

    # N problems · B batch · Q queries · E embed · T text · V vocabulary
"""

from collections.abc import Callable
from functools import partial

from mindspore import ops

from mindblip2.models import losses
from mindblip2.models.blip2_qformer import Blip2Classifier

FIXED_NOISE = 0.5  # the same number for every candidate: the likeliest negative is drawn


def each(loss: Callable) -> Callable:
    """Apply a loss to each of the stacked problems -> a function of a network and (N, …) tensors, with values
    (N,)."""

    def stacked(_, **tensors):
        problems = zip(*(list(x) for x in tensors.values()), strict=True)
        return ops.stack([loss(*problem) for problem in problems])

    return stacked


def itc(_, image, text, temp, gather: bool, image_id=None):
    """Losses (N,) and the similarities in both directions (N, B, B)."""
    found = [
        losses.itc(
            losses.normalise(image[n]),
            losses.normalise(text[n]),
            temp[n],
            None if image_id is None else image_id[n],
            gather_with_grad=gather,
        )
        for n in range(len(temp))
    ]
    return tuple(ops.stack(values) for values in zip(*found, strict=True))


def negatives(_, sim, image_id=None):
    """The likeliest negative of each row, (N, B), as numbers to be met exactly."""
    image_idx, text_idx = [], []
    for n, sim_BB in enumerate(sim):
        batch = len(sim_BB)
        same = losses.same_picture(batch, batch, None if image_id is None else image_id[n])
        noise = ops.full_like(sim_BB, FIXED_NOISE)
        image_idx.append(losses.hard_negatives(sim_BB.T, same, noise).astype(sim.dtype))
        text_idx.append(losses.hard_negatives(sim_BB, same, noise).astype(sim.dtype))
    return ops.stack(image_idx), ops.stack(text_idx)


def probabilities(model, image, text):
    """softmax over labels of similarity / temp, the best query counting."""
    return Blip2Classifier.probabilities(model, losses.normalise(image), losses.normalise(text))


LOSSES = {
    r"itc(\.image_id)?": partial(itc, gather=False),
    r"itc\.gather_with_grad": partial(itc, gather=True),
    r"negatives(\.image_id)?": negatives,
    r"itm": each(lambda logits: losses.itm(logits)),
    r"lm": each(lambda logits, ids: losses.lm(logits, ids, 0, 0.1)),
    r"classifier": probabilities,
}
