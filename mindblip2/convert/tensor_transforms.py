"""The few things that are not a renaming: how a tensor of a foreign file becomes a parameter of ours, each
with its reason."""

import functools
import math

import torch

from mindblip2.config import Blip2Config
from mindblip2.convert.infer_config import MAX_ADDED_ROWS

FUSED = "q and v parts of the fused bias; the k part has no effect: the softmax ignores it"
SEED = 42
ROTARY = (".attention.query.weight", ".attention.key.weight")
VOCABULARY = ("llm.word.embedding_table", "llm.lm_head.weight")


def find_transform(source, name, theirs, got, shape, text_config=None):
    """(note, change) that make of their tensor of shape ``got`` our parameter of ``shape``, where change is
    None or a function of the tensor; None where nothing does.  Notes are for the table: what is not one to
    one is said."""
    if got == shape:
        return _rotary(text_config) if source.interleaved and name.endswith(ROTARY) else ("", None)
    if len(got) == 4:  # a convolution whose kernel is its stride is one product per patch
        return ("", lambda value: value.reshape(shape)) if (got[0], math.prod(got[1:])) == shape else None
    if len(got) != len(shape):
        return None
    if got == (3 * shape[0], *shape[1:]):
        return _part_of_three(name, theirs)
    if name == "vit.pos_embed" and got[-1] == shape[-1]:
        return f"interpolated from {got[1]} to {shape[1]} tokens", functools.partial(
            interpolate_pos_embed, tokens=shape[1]
        )
    if name in ("qformer.embeddings.word.embedding_table", "qformer.lm_head.bias") and got[0] + 1 == shape[0]:
        return "one row added for [DEC]", lambda value: torch.cat(
            [value, initial_value(name, (1, *shape[1:])).to(value.dtype)]
        )
    if name in VOCABULARY and shape[0] < got[0] < shape[0] + MAX_ADDED_ROWS:
        return (
            f"rows {shape[0]} to {got[0] - 1} left out: added or padded, and vocab_size is {shape[0]}",
            lambda value: value[: shape[0]],
        )
    return None


def _rotary(text_config):
    return (
        "rows of a rotary pair put half a head apart, as transformers has them",
        functools.partial(half_split, width=text_config.hidden_size // text_config.num_heads),
    )


def _part_of_three(name, theirs):
    if theirs.endswith("qkv.bias"):
        return FUSED, functools.partial(take_third, index=0 if name.endswith("q_bias") else 2)
    if theirs.endswith("W_pack.weight"):
        index = ("query", "key", "value").index(name.split(".")[-2])
        return "a third of W_pack: query, key and value below each other", functools.partial(
            take_third, index=index
        )
    return None


def take_third(value, index):
    """Query, key or value, 0 to 2, of what holds them below each other."""
    return value.unflatten(0, (3, -1))[index]


def half_split(value, width):
    """Rotary channels of heads ``width`` wide, (heads · width, D): Meta turns channels 2j and 2j + 1 as a
    pair, we and transformers j and j + width / 2."""
    return value.reshape(-1, width // 2, 2, value.shape[-1]).transpose(1, 2).reshape(value.shape)


def interleave(value, width):
    """The opposite of :func:`half_split`."""
    return value.reshape(-1, 2, width // 2, value.shape[-1]).transpose(1, 2).reshape(value.shape)


def interpolate_pos_embed(pos_embed, tokens):
    """Position embeddings (1, P, D) for another grid, as LAVIS ``interpolate_pos_embed``: bicubic over the
    grid, float32, the class token's row untouched."""
    width = pos_embed.shape[-1]
    old, new = (round((n - 1) ** 0.5) for n in (pos_embed.shape[1], tokens))
    grid = pos_embed[:, 1:].float().reshape(1, old, old, width).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([pos_embed[:, :1].float(), grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)


def initial_value(name, shape):
    """A parameter that is in no file: the same numbers for the same name."""
    leaf = name.rpartition(".")[2]
    if name == "temp":
        return torch.tensor(Blip2Config().temperature)
    if leaf == "gamma":
        return torch.ones(shape)
    if leaf in ("beta", "bias"):
        return torch.zeros(shape)
    seed = sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**31 + SEED
    return torch.empty(shape).normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
