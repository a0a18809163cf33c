"""The torch side of a case: what a twin gives, and the three networks compared. An NPU host that only checks
needs none of it."""

import numpy as np
import torch

from mindblip2.config import Blip2Config
from mindblip2.parity.compare import Row
from mindblip2.parity.model_triple import (
    Case,
    ModelTriple,
    cotangent,
    judge,
    named,
    run_ours,
    several,
    together,
    trained,
)
from mindblip2.parity.reference.config import ReferenceConfig
from mindblip2.parity.reference.model import ReferenceModel
from mindblip2.parity.report.timing import side


def twin_config(config: Blip2Config) -> ReferenceConfig:
    """The twin's dimensions and ids from ours. Its constants (every eps, the GELU, the smoothing) stay its
    own, as they are what is compared, unless the configuration gives another number than its default: see
    :func:`departures`."""
    vit, qformer = config.vision_config, config.qformer_config
    return ReferenceConfig(
        image_size=vit.image_size,
        patch=vit.patch_size,
        vit_width=vit.hidden_size,
        vit_depth=vit.num_hidden_layers,
        vit_heads=vit.num_attention_heads,
        vit_hidden=vit.intermediate_size,
        width=qformer.hidden_size,
        layers=qformer.num_hidden_layers,
        heads=qformer.num_attention_heads,
        ffn=qformer.intermediate_size,
        vocab=qformer.vocab_size,
        positions=qformer.max_position_embeddings,
        cross_attention_freq=qformer.cross_attention_freq,
        queries=qformer.query_length,
        embed=qformer.head_embed_dim,
        bos=qformer.bos_token_id,
        pad=qformer.pad_token_id,
        channels=vit.num_channels,
        query_reduce=config.query_reduce,
        **{name: value for name, (_, value) in departures(config).items()},
    )


def departures(config: Blip2Config) -> dict[str, tuple[str, float]]:
    """Constants of LAVIS's that a configuration changes: field of the ReferenceConfig → our key and the value.
    Equality with LAVIS is not given then, so a run prints them."""
    found, default = {}, Blip2Config()
    for name, (section, key) in {
        "vit_eps": ("vision_config", "layer_norm_eps"),
        "qformer_eps": ("qformer_config", "layer_norm_eps"),
        "ln_vision_eps": ("", "ln_vision_eps"),
        "smoothing": ("", "label_smoothing"),
        "gather_with_grad": ("", "gather_with_grad"),
    }.items():
        given, usual = (getattr(getattr(one, section) if section else one, key) for one in (config, default))
        if given != usual:
            found[name] = f"{section}.{key}".lstrip("."), given
    return found


def rows(case: Case, nets: ModelTriple) -> list[Row]:
    """The case on all three networks, compared."""
    with side("MindSpore"):
        ours = run_ours(case, nets.ours)
    with side("torch"):
        torch32 = run_theirs(case, nets.torch32)
    with side("torch in float64"):
        truth = run_theirs(case, nets.truth)
    return judge(case.name, ours, torch32, truth)


def run_theirs(case: Case, twin: ReferenceModel) -> dict[str, np.ndarray]:
    """The case's outputs and gradients on a twin, in the twin's dtype, by our names and in our shapes."""
    if case.stacked:
        return together(run_theirs(problem, twin) for problem in case.problems())
    dtype = next(twin.parameters()).dtype
    inputs = {
        name: torch.from_numpy(value).to(dtype if value.dtype.kind == "f" else torch.long)
        for name, value in case.inputs.items()
    }
    if not case.backward:
        with torch.no_grad():
            return named([numbers(value) for value in several(case.theirs(twin, **inputs))])
    weights = [twin.parameter_of(name) for name in case.weights]
    variables = [inputs[name].requires_grad_() for name in case.differentiated]
    with trained(twin.parameters(), weights):
        found = several(case.theirs(twin, **inputs))
        total = sum(
            (value * torch.from_numpy(cotangent(case, i, tuple(value.shape)))).sum()
            for i, value in enumerate(found)
        )
        grads = list(torch.autograd.grad(total, variables + weights, materialize_grads=True))
    for i in range(len(variables), len(grads)):  # the patch convolution is a product here
        grads[i] = grads[i].flatten(1) if grads[i].ndim == 4 else grads[i]
    return named([numbers(value) for value in found], case, [numbers(grad) for grad in grads])


def numbers(value: torch.Tensor) -> np.ndarray:
    """NumPy's array of a tensor; bfloat16, which NumPy does not have, in float32."""
    value = value.detach()
    return (value.float() if value.dtype is torch.bfloat16 else value).numpy()
