"""Both networks run end to end ("chained"): errors add up, and the first row that does not pass is where they
part.

One stage-1 forward pass with given negatives, every module on the way recorded. A Q-Former module runs once
per verb, so its rows carry the verb's name.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from mindspore import nn

from mindblip2.parity.activation_hooks import twin_paths
from mindblip2.parity.candidate.chained import FIRST, batch, by_verb, our_activations, our_losses
from mindblip2.parity.model_triple import FEW, Case, ModelTriple
from mindblip2.parity.reference.model import ReferenceModel, capture

SUMMED = 4  # sets of captions that the gradients of large weights are summed over


def chained(nets: ModelTriple, inputs: Mapping[str, np.ndarray]) -> tuple[dict, dict, dict]:
    """Activations (ours, torch32, truth) of one forward pass, in the order of the network."""
    freq = nets.truth.config.cross_attention_freq
    paths = twin_paths(nets.ours, freq)
    return (
        our_activations(nets.ours, paths, inputs),
        their_activations(nets.torch32, paths, inputs),
        their_activations(nets.truth, paths, inputs),
    )


@torch.no_grad()
def their_activations(
    twin: ReferenceModel, paths: Mapping[str, str], inputs: Mapping[str, np.ndarray]
) -> dict:
    """The same of a twin, under our names."""
    embedded = []
    handles = (
        [twin.get_submodule(paths[FIRST]).register_forward_pre_hook(lambda _, args: embedded.append(args[0]))]
        if FIRST in paths
        else []
    )
    with capture(twin, paths.values()) as outputs:
        their_losses(twin, **{name: torch.from_numpy(value) for name, value in inputs.items()})
    for handle in handles:
        handle.remove()
    found = {ours: [value.numpy() for value in outputs[theirs]] for ours, theirs in paths.items()}
    return ({"vit.embed": embedded[0].numpy()} if embedded else {}) | by_verb(found)


def their_losses(twin: ReferenceModel, image, ids, image_idx, text_idx):
    """The same of a twin."""
    return torch.stack(twin(image.to(twin.query_tokens.dtype), ids, negatives=(image_idx, text_idx))[:4])


def stage1_cases(model: nn.Cell, image: np.ndarray, ids_NBT: np.ndarray, parts: int = 1) -> Iterator[Case]:
    """The losses of a batch with N sets of captions, and the gradient of every trainable parameter, over the
    first ``SUMMED`` sets; in so many ``parts``, because at full width all gradients at once would take 3 GB
    and more."""
    trained = {parameter.name: parameter.size for parameter in model.trainable_params()}
    few = tuple(name for name, size in trained.items() if size < FEW)
    large = [name for name in trained if name not in few]
    inputs = batch(image, ids_NBT[0])
    for k in range(parts):
        yield Case(
            f"stage1.{k}" if parts > 1 else "stage1",
            their_losses,
            our_losses,
            inputs | {"ids": ids_NBT[:SUMMED]},
            tuple(large[k::parts]),
            backward=True,
            fixed=("image",),
            stacked=("ids",),
            values=False,
        )
    yield Case(
        "stage1.losses",
        their_losses,
        our_losses,
        inputs | {"ids": ids_NBT},
        few,
        backward=True,
        fixed=("image",),
        stacked=("ids",),
    )
