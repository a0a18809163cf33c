"""Which files make one model: an index, numbered shards, Meta's model-parallel parts."""
import json
import re
from pathlib import Path

import torch

from convert.state import State
from mindblip2.checkpoint import CheckpointError

INDEX = ".index.json"
NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)")
CONSOLIDATED = re.compile(r"consolidated\.(\d\d)\.pth")
WHOLE = (("model", ".safetensors"), ("pytorch_model", ".bin"))


def parts(path):
    """The files of a model that is given by its folder, its index, any of its shards, or as one file; and what an index promises:
    name → file.  Raises FileNotFoundError that names what is missing."""
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.absolute()}")
    numbered = NUMBERED.fullmatch(path.name)
    if path.name.endswith(INDEX):
        return _indexed(path)
    if numbered:
        stem, _, _, end = numbered.groups()
        index = path.with_name(stem + end + INDEX)
        return _indexed(index) if index.is_file() else _numbered(path)
    if CONSOLIDATED.fullmatch(path.name):
        return _consolidated(path.parent)
    return [path], {}


def is_consolidated(paths):
    """Are these Meta's model-parallel parts?"""
    return CONSOLIDATED.fullmatch(paths[0].name) is not None


def _in_folder(folder):
    for stem, end in WHOLE:
        index, whole, shards = folder / (stem + end + INDEX), folder / (stem + end), sorted(folder.glob(f"{stem}-*-of-*{end}"))
        if index.is_file():
            return _indexed(index)
        if whole.is_file():
            return [whole], {}
        if shards:
            return _numbered(shards[0])
    if any(CONSOLIDATED.fullmatch(file.name) for file in folder.iterdir()):
        return _consolidated(folder)
    raise FileNotFoundError(f"the folder {folder.absolute()} holds no model.safetensors, pytorch_model.bin, index or shards of "
                            "these, or consolidated.00.pth")


def _indexed(index):
    try:
        weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        promised = {name: index.parent / Path(file).name for name, file in weights.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards ({type(error).__name__}): get it again") from None
    if not promised:
        raise CheckpointError(f"{index} names no shards: get it again")
    return _present(sorted(set(promised.values())), f"{index.name} names"), promised


def _numbered(path):
    stem, _, count, end = NUMBERED.fullmatch(path.name).groups()
    files = [path.with_name(f"{stem}-{number + 1:05d}-of-{count}{end}") for number in range(int(count))]
    return _present(files, f"{path.name} is one of {int(count)} and needs"), {}


def _consolidated(folder):
    numbers = [int(found[1]) for file in folder.iterdir() if (found := CONSOLIDATED.fullmatch(file.name))]
    files = [folder / f"consolidated.{number:02d}.pth" for number in range(max(numbers) + 1)]
    return _present(files, f"{files[-1].name} needs"), {}


def _present(files, who):
    missing = [file for file in files if not file.is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if missing[1:] else ""
        raise FileNotFoundError(f"{who} the shard {missing[0].name}{more}, which is not in {missing[0].parent.absolute()}: get "
                                f"it, or "
                                "take the whole folder again")
    return files


class Joined(State):
    """Meta's consolidated.*.pth as one state dict: each part holds a slice of every matrix, all of the norms.

    Which axis was cut follows from the shapes: the width is that of the norms, and a matrix that maps to or from the width is
    whole there."""

    BY_ROWS = (".attention.wq.weight", ".attention.wk.weight", ".attention.wv.weight", ".feed_forward.w1.weight",
               ".feed_forward.w3.weight")
    BY_COLUMNS = (".attention.wo.weight", ".feed_forward.w2.weight")

    def __init__(self, files, folder):
        self.names, self._parts, first = files[0].names, files, files[0]
        if "norm.weight" not in first:
            raise CheckpointError(f"{folder / 'consolidated.00.pth'} holds no norm.weight: it is none of Meta's Llama files")
        self._width, = first.shape("norm.weight")
        for number, part in enumerate(files[1:], 1):
            if set(part) != set(first):
                raise CheckpointError(f"consolidated.{number:02d}.pth and consolidated.00.pth in {folder} hold different "
                                      f"tensors: they "
                                      "are not of one model")
        name = next((name for name in first if name.endswith(".attention.wo.weight")), None)
        rows = first.shape(name)[0] if name else self._width
        heads = sum(part.shape(name)[1] for part in files) if name else rows
        if heads != self._width:
            raise CheckpointError(
                f"{folder} holds {len(files)} of Meta's parts, but the {heads} columns of their {name} make no width of "
                f"{self._width}: "
                f"{self._width // first.shape(name)[1]} parts are needed, consolidated.00.pth to "
                f"consolidated.{self._width // first.shape(name)[1] - 1:02d}.pth")

    def _axis(self, name):
        """The axis along which the parts of a tensor are joined; None where every part has it whole."""
        shape = self._parts[0].shape(name)
        if len(self._parts) == 1 or len(shape) < 2:
            return None
        if name.endswith(self.BY_COLUMNS):
            return 1
        if name.endswith(self.BY_ROWS) or name == "output.weight":
            return 0
        return 0 if shape[1] == self._width else 1  # the embedding: Llama-3 cuts the vocabulary, Llama-1 and -2 the width

    def __getitem__(self, name):
        axis = self._axis(name)
        return self._parts[0][name] if axis is None else torch.cat([part[name] for part in self._parts], axis)

    def shape(self, name):
        axis, shape = self._axis(name), list(self._parts[0].shape(name))
        if axis is not None:
            shape[axis] = sum(part.shape(name)[axis] for part in self._parts)
        return tuple(shape)
