"""Where the weights of a full-width run come from, tensor by tensor: the user's files, or seeded random
numbers.

The twin takes LAVIS's names straight from the .pth files. Our side takes the converted .ckpt if there is one,
so that the conversion is compared too; otherwise the rows of the converter's plan.
"""

import argparse
import dataclasses
import math
from collections.abc import Mapping

import mindspore as ms
import numpy as np
import torch

from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError
from mindblip2.checkpoint.pretrained import named_file
from mindblip2.config import Blip2Config
from mindblip2.convert import plan
from mindblip2.convert.detect import detect
from mindblip2.convert.name_maps.blip2 import LAVIS, source_name
from mindblip2.convert.parameter_shapes import stage_1_shapes
from mindblip2.convert.readers.files import read_state_dict
from mindblip2.models.blip2_qformer import Blip2Qformer
from mindblip2.parity import seeded_weights
from mindblip2.parity.candidate.weights import fill
from mindblip2.parity.model_triple import ModelTriple
from mindblip2.parity.reference.model import ReferenceModel, load
from mindblip2.parity.reference.outputs import twin_config

VIT = "visual_encoder."
TINY = Blip2Config(
    vision_config=dict(
        image_size=56, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=279
    ),
    qformer_config=dict(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=96,
        encoder_width=64,
        query_length=8,
        head_embed_dim=32,
    ),
)


class Seeded(Mapping):
    """A LAVIS checkpoint of random numbers that are drawn when they are asked for."""

    def __init__(self, config: Blip2Config, seed: int = seeded_weights.SEED):
        with torch.device("meta"):
            self.meta = dict(ReferenceModel(twin_config(config)).state_dict())
        self.seed, self.sep_id = seed, config.qformer_config.sep_token_id

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = tuple(self.meta[name].shape)
        return torch.from_numpy(
            seeded_weights.weight(name, shape, self.seed, seeded_weights.SEP_BIAS["full"], self.sep_id)
        )

    def __iter__(self):
        return iter(self.meta)

    def __len__(self):
        return len(self.meta)


class Stored(Seeded):
    """A .ckpt of ours under LAVIS's names. What it does not hold (of a model of stage 2 the text half of the
    Q-Former and the heads) is random numbers."""

    def __init__(self, stored: Checkpoint, config: Blip2Config, seed: int = seeded_weights.SEED):
        super().__init__(config, seed)
        freq, self.stored = config.qformer_config.cross_attention_freq, stored
        self.names = {
            source_name(LAVIS, name, freq): name for name in stage_1_shapes(config) if name in stored
        }
        self.missing = [name for name in stage_1_shapes(config) if name not in stored]
        if not self.names:
            raise CheckpointError(
                f"{stored.path} holds no parameter of this --config: give the .ckpt of such a model"
            )

    def __getitem__(self, name: str) -> torch.Tensor:
        ours, shape = self.names.get(name), tuple(self.meta[name].shape)
        if ours is None:
            return super().__getitem__(name)
        value = torch.from_numpy(self.stored.float32(ours))
        if value.numel() != math.prod(shape):
            raise CheckpointError(
                f"{self.stored.path}: {ours} has {tuple(value.shape)}, but --config asks for {shape}: give "
                "the "
                "configuration that belongs to the file"
            )
        return value.reshape(shape)


class Weights:
    """``theirs(name)`` by LAVIS's names, ``ours(name)`` by our names; both float32, one tensor at a time. A
    ``ckpt`` without a ``torch_path`` gives both sides their weights."""

    def __init__(
        self, config: Blip2Config, torch_path=None, vit_path=None, ckpt=None, seed: int = seeded_weights.SEED
    ):
        self.config = config
        self.vit = read_state_dict(vit_path) if vit_path else None
        self.stored = Checkpoint(ckpt) if ckpt else None
        if vit_path and not torch_path:
            raise CheckpointError(f"--vit_path {vit_path} needs --weights too: it holds the ViT of that file")
        self.main = (
            read_state_dict(torch_path)
            if torch_path
            else Seeded(config, seed)
            if self.stored is None
            else Stored(self.stored, config, seed)
        )
        if torch_path and detect(self.main, torch_path) is not LAVIS:
            raise CheckpointError(
                f"{torch_path} is no LAVIS stage-1 file: parity compares with blip2_pretrained.pth"
            )
        self.rows = {} if ckpt and torch_path else {row.ours: row for row in self.planned() if row.ours}

    def planned(self) -> list:
        """The converter's rows. Those of seeded weights are planned on shapes alone."""
        shapes = stage_1_shapes(self.config)
        if not isinstance(self.main, Seeded):
            return plan.make_plan(self.main, LAVIS, self.vit, shapes, self.config)
        meta = {name: value for name, value in self.main.meta.items() if name not in seeded_weights.TIED}
        return [
            dataclasses.replace(row, state=self.main)
            for row in plan.make_plan(meta, LAVIS, None, shapes, self.config)
        ]

    def theirs(self, name: str) -> torch.Tensor:
        """A tensor of the twin's."""
        if name.endswith("position_ids"):
            return torch.arange(self.config.qformer_config.max_position_embeddings)[None]
        name = seeded_weights.TIED.get(name, name)
        if self.vit is not None and name.startswith(VIT):
            value = self.vit[name.removeprefix(VIT)].float()
        else:
            value = self.main[name].float()
        return resized(value, self.config.vision_config.num_tokens) if name.endswith("pos_embed") else value

    def given(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A parameter of ours, as ``our_weights.fill`` asks for it. Raises :class:`CheckpointError` for one
        of another shape."""
        value = self.ours(name)
        if self.stored is not None and value.shape != shape:
            raise CheckpointError(
                f"{self.stored.path}: {name} has {value.shape}, the model {shape}: use the --config that "
                "belongs to "
                "the file"
            )
        return value

    def ours(self, name: str) -> np.ndarray:
        """A parameter of ours."""
        if self.stored is not None and (name in self.stored or not self.rows):
            return self.stored.float32(name)
        return plan.load_tensor(self.rows[name]).float().numpy()


def ckpt_of(options: argparse.Namespace) -> str | None:
    """The file that ``--ckpt`` means: a path, or the name of weights that are packaged or in the cache
    folder."""
    return str(named_file(options.ckpt, "--ckpt")) if options.ckpt else None


def resized(pos_embed_1PW: torch.Tensor, tokens: int) -> torch.Tensor:
    """LAVIS's ``interpolate_pos_embed``: the grid bicubic, the class token as it is."""
    old, new = (round((count - 1) ** 0.5) for count in (pos_embed_1PW.shape[1], tokens))
    if old == new:
        return pos_embed_1PW
    grid = pos_embed_1PW[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([pos_embed_1PW[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def make_nets(weights: Weights, config: Blip2Config, noise: torch.dtype = torch.float32) -> ModelTriple:
    """The three networks with the dimensions of ``config``, which may have fewer blocks than the weights;
    ``noise``: the dtype in which torch may round."""
    with ms.nn.utils.no_init_parameters():
        ours = Blip2Qformer(config)
    fill(ours, weights.given)
    return ModelTriple(
        make_twin(weights, config, torch.float64), make_twin(weights, config, noise), ours.set_train(False)
    )


def make_twin(weights: Weights, config: Blip2Config, dtype: torch.dtype) -> ReferenceModel:
    """A twin with the dimensions of ``config``."""
    dimensions = twin_config(config)
    with torch.device("meta"):
        names = list(ReferenceModel(dimensions).state_dict())
    return load({name: weights.theirs(name) for name in names}, dimensions, dtype)
