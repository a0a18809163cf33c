"""Random but reproducible weights by LAVIS parameter name, from NumPy alone.

Each parameter has a stream of its own, PCG64 seeded with (seed, crc32(name)), scaled by a rule that reads
only the name and the shape. Both sides of a comparison can therefore make the same checkpoint, at any size,
without a download; the files under tests/reference/tiny were made by this rule (their manifest.json holds the
crc32 of every array).

Nothing comes out as 0 or 1 and the ``*_query`` feed-forwards differ from the text ones, so a swapped or
forgotten parameter shows; weights scale with 1/sqrt(fan-in), so activations stay O(1) through 39 blocks.
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np

SEED = 20230  # of every checkpoint under tests/reference/tiny
# BERT's [SEP] ends a stage-1 caption; its output bias is raised so that captions of a random model end
SEP_ID = 102
SEP_BIAS = {"tiny": 4.2, "full": 6.0}

TIED = {  # one tensor under two names in a LAVIS state dict: name -> the name that owns it
    "Qformer.cls.predictions.decoder.weight": "Qformer.bert.embeddings.word_embeddings.weight",
    "Qformer.cls.predictions.decoder.bias": "Qformer.cls.predictions.bias",
}

# std of a parameter that is no matrix, by the last part of its name
LEAF_STD = {
    "q_bias": 0.2,
    "v_bias": 0.2,
    "cls_token": 0.3,
    "pos_embed": 0.3,
    "query_tokens": 0.25,
    "bias": 0.1,
}
# std x sqrt(width) of tables and output heads, by the module that owns them
TABLE_GAIN = {
    "word_embeddings": 1.8,
    "position_embeddings": 1.0,
    "embed_tokens": 1.2,
    "embed_positions": 4.0,
    "lm_head": 1.5,
}
# std x sqrt(fan-in) of matrices, by the module that owns them; every other matrix has MATRIX_GAIN_ELSE
MATRIX_GAIN = {
    "query": 1.4,
    "key": 1.4,
    "q_proj": 1.6,
    "k_proj": 1.6,
    "v_proj": 1.2,
    "out_proj": 1.2,
    "o_proj": 1.2,
    "qkv": 1.3,
    "fc2": 0.8,
    "vision_proj": 1.2,
    "text_proj": 1.2,
    "opt_proj": 1.2,
    "llm_proj": 1.2,
    "itm_head": 1.2,
}
MATRIX_GAIN_ELSE = 0.9
# Cross-attention is sharp; self-attention gets a small share: the tokens of a deep random net stay distinct.
CROSS_GAIN = {"query": 2.5, "key": 2.5, "value": 0.85, "dense": 0.85}
SELF_GAIN = {"value": 0.6, "dense": 0.6}
VIT_PROJ_GAIN = 0.5


def normal(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal float32 of ``shape`` from the stream that belongs to (seed, name)."""
    stream = np.random.SeedSequence([int(seed), zlib.crc32(name.encode())])
    return np.random.Generator(np.random.PCG64(stream)).standard_normal(tuple(shape), dtype=np.float32)


def mean_and_std(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of a parameter, read off its name and shape."""
    *_, owner, leaf = ["", *name.split(".")]
    if leaf == "temp":
        return 0.09, 0.0
    if owner.lower().endswith("norm") or owner in ("norm1", "norm2", "ln_vision"):
        return (1.0, 0.15) if leaf == "weight" else (0.0, 0.1)
    if name.endswith("predictions.bias"):
        return 0.0, 0.2
    if leaf in LEAF_STD:
        return 0.0, LEAF_STD[leaf]
    if owner in TABLE_GAIN:
        return 0.0, TABLE_GAIN[owner] / math.sqrt(shape[-1])
    return 0.0, matrix_gain(name, owner) / math.sqrt(math.prod(shape[1:]))


def matrix_gain(name: str, owner: str) -> float:
    """std x sqrt(fan-in) of a matrix: its branch (cross, self, ViT) first, then the module that owns it."""
    if "crossattention" in name and owner in CROSS_GAIN:
        return CROSS_GAIN[owner]
    if ".attention." in name and owner in SELF_GAIN:
        return SELF_GAIN[owner]
    if ".attn.proj." in name:
        return VIT_PROJ_GAIN
    return MATRIX_GAIN.get(owner, MATRIX_GAIN_ELSE)


def weight(
    name: str, shape: tuple[int, ...], seed: int = SEED, sep_bias: float = 0.0, sep_id: int = SEP_ID
) -> np.ndarray:
    """One parameter (float32), or the int64 ``position_ids`` buffer, by its LAVIS name."""
    name = TIED.get(name, name)
    if name.endswith("position_ids"):
        return np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
    mean, std = mean_and_std(name, shape)
    value = normal(seed, name, shape) * np.float32(std) + np.float32(mean)
    if name == "Qformer.cls.predictions.bias" and sep_bias:
        value[sep_id] += np.float32(sep_bias)
    return np.asarray(value, np.float32)  # a 0-d draw is a NumPy scalar


def weights(
    shapes: Mapping[str, tuple[int, ...]], seed: int = SEED, sep_bias: float = 0.0
) -> dict[str, np.ndarray]:
    """A whole checkpoint: ``{name: array}`` for ``{name: shape}``."""
    return {name: weight(name, shape, seed, sep_bias) for name, shape in shapes.items()}


def crc32(value: np.ndarray) -> int:
    """Fingerprint of an array's bytes, the one that manifest.json holds."""
    return zlib.crc32(np.ascontiguousarray(value).tobytes())
