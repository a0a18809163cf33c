"""Our side of a network that runs end to end (mindblip2/parity/cases/chained.py): every module recorded,
under its name and the verb's."""

from collections.abc import Mapping

import numpy as np
from mindspore import nn, ops

from mindblip2.parity import activation_hooks as our_side
from mindblip2.parity.model_triple import tensor

VERBS = ("see", "read", "match", "caption")  # in the order in which a forward pass uses them
FIRST = "vit.blocks.0"  # what goes into it is the class token, the patches and their positions


def batch(image: np.ndarray, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs of a forward pass. The wrong picture of each text is the next one's, the wrong text the one
    before; of two the last, or pictures and texts could be exchanged and nobody would notice."""
    own = np.arange(len(ids))
    return {
        "image": image,
        "ids": ids,
        "image_idx": np.roll(own, -1),
        "text_idx": np.array([1, 1]) if len(ids) == 2 else np.roll(own, 1),
    }


def our_activations(
    model: nn.Cell, paths: Mapping[str, str], inputs: Mapping[str, np.ndarray], whole: bool = True
) -> dict:
    """Every module's outputs in one forward pass of ours; not ``whole``: without those that ran less often
    than they should."""
    first = [FIRST] if FIRST in paths else []
    with our_side.capture(model, paths) as outputs, our_side.capture(model, first, inputs=True) as embedded:
        our_losses(model, **{name: tensor(value) for name, value in inputs.items()})
    return ({"vit.embed": embedded[FIRST][0]} if embedded else {}) | by_verb(outputs, whole)


def by_verb(outputs: Mapping[str, list[np.ndarray]], whole: bool = True) -> dict[str, np.ndarray]:
    """One array per module and verb; what ran only once keeps its name."""
    found = {}
    for path, values in outputs.items():
        verbs = verbs_of(path)
        # ours makes the image's keys once, the twin per verb
        values = values[:1] if ".memory." in path else values
        if len(values) != len(verbs):
            if not whole:
                continue
            raise ValueError(f"{path} ran {len(values)} times, expected {' '.join(verbs)}")
        found |= {f"{path} {verb}".strip(): value for verb, value in zip(verbs, values, strict=True)}
    return found


def verbs_of(path: str) -> tuple[str, ...]:
    """The verbs that use a module, in the order of a forward pass."""
    part = path.removeprefix("qformer.encoder.layers.").partition(".")[2]
    if not path.startswith("qformer.encoder.layers."):
        return ("",)
    if part.startswith("text_"):
        return ("read", "match", "caption")
    return ("see", "match") if part.startswith(("query_", "cross_")) else VERBS


def our_losses(model: nn.Cell, image, ids, image_idx, text_idx):
    """(loss, itc, itm, lm) of a batch with given negatives."""
    return ops.stack(model(image, ids, None, (image_idx, text_idx), True))
