"""Our parameters on a host without torch: from a .ckpt, or the seeded random numbers that the dumping host
had too."""

import zlib
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import nn

from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError
from mindblip2.config import Blip2Config, LlamaConfig, OPTConfig
from mindblip2.convert.name_maps.blip2 import LAVIS, NameMap, source_name
from mindblip2.convert.name_maps.language_models import BAICHUAN, LLAMA, OPT
from mindblip2.parity import seeded_weights
from mindblip2.parity.candidate.language_model import is_baichuan

Given = Callable[[str, tuple[int, ...]], np.ndarray]  # (our name, shape) -> float32


def from_file(path: str, absent: Given | None = None) -> Given:
    """The tensors of a .ckpt of ours, by name; what it does not hold is taken from ``absent``."""
    stored = Checkpoint(path)

    def given(name, shape):
        if name not in stored and absent is not None:
            return absent(name, shape)
        if name not in stored:
            raise CheckpointError(
                f"{path} holds no {name}: it belongs to another model than the dump, or was not written by "
                "convert/convert_weight.py"
            )
        return stored.float32(name)

    return given


def language_source(text: LlamaConfig | OPTConfig | None) -> NameMap:
    """Under whose names the weights of a language model of ours are compared."""
    return (
        OPT if isinstance(text, OPTConfig) else BAICHUAN if text is not None and is_baichuan(text) else LLAMA
    )


def seeded(config: Blip2Config, seed: int) -> Given:
    """Random numbers by the names that LAVIS and transformers have: those of
    ``mindblip2.parity.weights.Seeded``, without torch."""
    freq = config.qformer_config.cross_attention_freq
    language = language_source(config.text_config)

    def given(name, shape):
        if name.startswith("llm."):
            theirs = source_name(language, name)
            if not theirs.endswith("W_pack.weight"):
                return seeded_weights.weight(theirs, shape, seed)
            third = ("query", "key", "value").index(name.split(".")[-2])
            return np.split(seeded_weights.weight(theirs, (3 * shape[0], *shape[1:]), seed), 3)[third]
        theirs = source_name(LAVIS, name, freq)
        return seeded_weights.weight(
            theirs, shape, seed, seeded_weights.SEP_BIAS["full"], config.qformer_config.sep_token_id
        )

    return given


def fill(model: nn.Cell, given: Given, prefix: str = "", source: str = "") -> None:
    """Give our parameters below ``prefix`` the weights of the same names below ``source``."""
    for name, parameter in model.parameters_and_names():
        if name.startswith(prefix):
            shape = tuple(parameter.shape)
            value = given(source + name.removeprefix(prefix) if prefix else name, shape)
            if value.shape != shape:
                raise CheckpointError(
                    f"{name} has {value.shape}, the model {shape}: use the --config that belongs to the file"
                )
            parameter.set_data(ms.Tensor(value))


def fingerprints(model: nn.Cell, prefix: str = "", source: str = "") -> dict[str, int]:
    """crc32 of the values that our parameters below ``prefix`` have, by their name below ``source``."""
    return {
        source + name.removeprefix(prefix) if prefix else name: zlib.crc32(
            np.ascontiguousarray(parameter.asnumpy()).tobytes()
        )
        for name, parameter in model.parameters_and_names()
        if name.startswith(prefix)
    }
