"""Our activations under the twin's names: forward hooks in PyNative, and the one table of module paths.

A path of ours means the same module of the twin where ``mindblip2.convert.name_maps.blip2`` has a row for it;
a block or a layer has the path that the rows of its parts have in common.

    # B batch · L tokens · D width
"""

import os.path
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from mindblip2.convert.name_maps.blip2 import LAVIS, source_name

# Modules of both sides that are called in different ways; their outputs are compared in
# mindblip2/parity/cases/stage1.py or around them.
APART = (
    "vit.patch_embed.proj",  # the twin convolves pixels; see vit.patch_embed
    "attn.qkv",  # the twin multiplies without calling the module; see attn
    "qformer.embedding_norm",  # the twin normalises queries and text in one call
    "qformer.embeddings.word",
    "qformer.embeddings.position",
)  # rows of a table, exact on both sides
# alike as a whole
GROUP = re.compile(r"vit\.patch_embed|vit\.blocks\.\d+(\.mlp)?|qformer\.encoder\.layers\.\d+")


def twin_paths(model: nn.Cell, freq: int) -> dict[str, str]:
    """Our module path -> the twin's, for every module whose outputs mean the same on both sides."""
    leaves = {name.rpartition(".")[0] for name, _ in model.parameters_and_names()}
    table = {path: theirs for path in leaves if path and (theirs := module_name(path, freq))}
    groups = [path for path, _ in model.cells_and_names() if GROUP.fullmatch(path)]
    table |= {
        group: common([table[path] for path in table if path.startswith(group + ".")]) for group in groups
    }
    return {
        path: table[path] for path, _ in model.cells_and_names() if path in table and not path.endswith(APART)
    }


def module_name(path: str, freq: int) -> str | None:
    """LAVIS's path of one of our modules that has parameters, or None."""
    theirs = source_name(LAVIS, path + ".weight", freq)
    return theirs and theirs.rpartition(".")[0]


def common(paths: list[str]) -> str:
    """The module that holds all these modules."""
    if len(paths) == 1:
        return paths[0].rpartition(".")[0]
    return os.path.commonpath([path.replace(".", "/") for path in paths]).replace("/", ".")


@contextmanager
def capture(
    model: nn.Cell, paths: Iterable[str], inputs: bool = False
) -> Iterator[dict[str, list[np.ndarray]]]:
    """Record what the cells called ``paths`` return, or their first input, one array per call; needs
    PyNative."""
    wanted = set(paths)
    cells = {path: cell for path, cell in model.cells_and_names() if path in wanted}
    if set(cells) != wanted:
        raise ValueError(f"no cells are called {sorted(wanted - set(cells))}")
    if ms.get_context("mode") != ms.PYNATIVE_MODE:
        raise ValueError(
            "hooks see activations in PyNative only: mindspore.set_context(mode=mindspore.PYNATIVE_MODE)"
        )
    seen: dict[str, list[np.ndarray]] = {path: [] for path in cells}

    def hook(path):
        def keep(_, args, output):
            seen[path].append(activation(args[0] if inputs else output).asnumpy())

        return keep

    handles = [cell.register_forward_hook(hook(path)) for path, cell in cells.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def activation(output):
    """The tensor of an output; of a layer's (queries, text, cache) what it has of queries and text, as (B, L,
    D)."""
    if not isinstance(output, tuple):
        return output
    parts = [part for part in output[:2] if part is not None]
    return parts[0] if len(parts) == 1 else ops.cat(parts, 1)
