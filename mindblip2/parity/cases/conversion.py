"""Weights there and back: a small file under foreign names becomes a .ckpt of ours and a file under those
names again, bit for bit.

Both sides of such a case are torch's files, so no dump holds it.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from mindblip2.config import Blip2Config
from mindblip2.convert.to_mindspore import to_mindspore
from mindblip2.convert.to_torch import to_torch
from mindblip2.parity.model_triple import Case, tensor
from mindblip2.parity.weights import TINY, Seeded


def conversion_case(
    name: str, state: Mapping[str, torch.Tensor], config: Blip2Config, names: str | None = None
) -> Case:
    """``state``: name → float32 tensor, all of a model of ``config``; ``names``: as
    mindblip2/convert/to_torch.py takes them."""
    return Case(
        name,
        lambda twin: torch.from_numpy(in_one(state, state)),
        lambda model: tensor(in_one(there_and_back(state, config, names), state)),
        {},
        local=True,
    )


def stage1_conversion() -> Case:
    """LAVIS's stage-1 file, of a tiny model."""
    return conversion_case("conversion", Seeded(TINY), TINY)


def there_and_back(
    state: Mapping[str, torch.Tensor], config: Blip2Config, names: str | None
) -> dict[str, torch.Tensor]:
    """Through two files on the disk."""
    with tempfile.TemporaryDirectory() as folder:
        first, ours, second = (Path(folder) / file for file in ("first.pth", "ours.ckpt", "second.pth"))
        torch.save(dict(state), first)
        to_mindspore(first, ours, config=config)
        return {key: value.clone() for key, value in to_torch(ours, second, names=names).items()}


def in_one(state: Mapping[str, torch.Tensor], names: Mapping) -> np.ndarray:
    """All floating-point tensors called ``names``, one behind the other."""
    return torch.cat(
        [state[name].float().flatten() for name in names if state[name].is_floating_point()]
    ).numpy()
