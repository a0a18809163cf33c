"""Which files make one model: an index, numbered shards, Meta's model-parallel parts."""

import re
from pathlib import Path

import torch

from mindblip2.checkpoint.ckpt import CheckpointError
from mindblip2.convert.hf_config import check_supported
from mindblip2.convert.readers.lazy_state_dict import LazyStateDict
from mindblip2.file_io import read_json

INDEX = ".index.json"
NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)")
VARIANT = re.compile(
    r"(model|pytorch_model)\.(?!index)\w+\.(safetensors|bin)|(model\.safetensors|pytorch_model\.bin)\.index\.\w+\.json"
)
CONSOLIDATED = re.compile(r"consolidated\.(\d\d)\.pth")
MAX_INDEX_BYTES = 64 << 20
MOST_NAMED = 8  # missing files in one message; Meta's models have no more parts
WHOLE = (("model", ".safetensors"), ("pytorch_model", ".bin"))


def find_shards(path):
    """The files of a model that is given by its folder, its index, any of its shards, or as one file; and
    what an index promises: name → file.  Raises FileNotFoundError that names what is missing."""
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.absolute()}")
    numbered = NUMBERED.fullmatch(path.name)
    if path.name.endswith(INDEX) or path.suffix == ".json" and VARIANT.fullmatch(path.name):
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
        index, whole, shards = (
            folder / (stem + end + INDEX),
            folder / (stem + end),
            sorted(folder.glob(f"{stem}-*-of-*{end}")),
        )
        if index.is_file():
            return _indexed(index)
        if whole.is_file():
            return [whole], {}
        if shards:
            return _numbered(shards[0])
    if any(CONSOLIDATED.fullmatch(file.name) for file in folder.iterdir()):
        return _consolidated(folder)
    variants = sorted(file for file in folder.iterdir() if VARIANT.fullmatch(file.name))
    if len(variants) == 1:
        return _indexed(variants[0]) if variants[0].suffix == ".json" else (variants, {})
    if variants:
        raise FileNotFoundError(
            f"the folder {folder.absolute()} holds no model.safetensors, but variants of it: give one of "
            f"{', '.join(file.name for file in variants[:MOST_NAMED])} as the path"
        )
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        check_supported(folder)
    raise FileNotFoundError(
        f"the folder {folder.absolute()} holds no model.safetensors, pytorch_model.bin, index or shards of "
        "these, or consolidated.00.pth"
    )


def _indexed(index):
    weights = read_json(index, dict, "an index of shards", max_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weights, dict) or not all(
        isinstance(file, str) and Path(file).name for file in weights.values()
    ):
        raise CheckpointError(
            f"{index} is no index of shards: its weight_map must map names of tensors to names of files; get "
            "it again"
        )
    if not weights:
        raise CheckpointError(f"{index} names no shards: get it again")
    promised = {name: index.parent / Path(file).name for name, file in weights.items()}
    return _present(sorted(set(promised.values())), f"{index.name} names"), promised


def _numbered(path):
    stem, _, count, end = NUMBERED.fullmatch(path.name).groups()
    files = [path.with_name(f"{stem}-{number + 1:05d}-of-{count}{end}") for number in range(int(count))]
    return _present(files, f"{path.name} is one of {int(count)} and needs"), {}


def _consolidated(folder):
    numbers = [int(found[1]) for file in folder.iterdir() if (found := CONSOLIDATED.fullmatch(file.name))]
    files = [_part(folder, number) for number in range(max(numbers) + 1)]
    return _present(files, f"{files[-1].name} needs"), {}


def _part(folder, number):
    return folder / f"consolidated.{number:02d}.pth"


def _present(files, who):
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise _missing(missing, who)
    return files


def _missing(files, who):
    names = ", ".join(file.name for file in files[:MOST_NAMED])
    names += f" and {len(files) - MOST_NAMED} more" if files[MOST_NAMED:] else ""
    what = f"the shards {names}, which are" if files[1:] else f"the shard {names}, which is"
    return FileNotFoundError(
        f"{who} {what} not in {files[0].parent.absolute()}: get what is missing, or take the whole folder "
        "again"
    )


class MetaStateDict(LazyStateDict):
    """Meta's consolidated.*.pth as one state dict: each part holds a slice of every matrix, all of the norms.

    Which axis was cut follows from the shapes: the width is that of the norms, and a matrix that maps to or
    from the width is whole there.  Raises FileNotFoundError that names the parts which the width asks for,
    :class:`CheckpointError` for parts of different models."""

    BY_ROWS = (
        ".attention.wq.weight",
        ".attention.wk.weight",
        ".attention.wv.weight",
        ".feed_forward.w1.weight",
        ".feed_forward.w3.weight",
    )
    BY_COLUMNS = (".attention.wo.weight", ".feed_forward.w2.weight")

    def __init__(self, files, folder):
        self.names, self._parts, first = files[0].names, files, files[0]
        if "norm.weight" not in first:
            raise CheckpointError(
                f"{_part(folder, 0)} holds no norm.weight: it is none of Meta's Llama files"
            )
        (self._width,) = first.shape("norm.weight")
        for number, part in enumerate(files[1:], 1):
            other = next(
                (
                    name
                    for name in sorted({*first, *part})
                    if name not in first or name not in part or first.shape(name) != part.shape(name)
                ),
                None,
            )
            if other:
                raise CheckpointError(
                    f"consolidated.{number:02d}.pth and consolidated.00.pth in {folder} are parts of "
                    "different models: "
                    f"{other} is in one of them only, or of another shape; take the whole folder again"
                )
        self._check_count(len(files), folder)

    def _check_count(self, count, folder):
        """All parts together are as wide as the norms."""
        name = next((name for name in self if name.endswith(".attention.wo.weight")), None)
        columns = self._parts[0].shape(name)[1] if name else self._width
        needed = self._width // columns
        got = (
            f"{folder} holds {count} of Meta's parts with {columns} columns of {name} each, but the model is "
            f"{self._width} wide: it needs"
        )
        if count < needed:
            raise _missing([_part(folder, number) for number in range(count, needed)], got)
        if count * columns != self._width:
            raise CheckpointError(
                f"{got} {needed} such parts, no more; take the files of other models out of the folder"
            )

    def _axis(self, name):
        """The axis along which the parts of a tensor are joined; None where every part has it whole."""
        shape = self._parts[0].shape(name)
        if len(self._parts) == 1 or len(shape) < 2:
            return None
        if name.endswith(self.BY_COLUMNS):
            return 1
        if name.endswith(self.BY_ROWS) or name == "output.weight":
            return 0
        # the embedding: Llama-3 cuts the vocabulary, Llama-1 and -2 the width
        return 0 if shape[1] == self._width else 1

    def __getitem__(self, name):
        axis = self._axis(name)
        return self._parts[0][name] if axis is None else torch.cat([part[name] for part in self._parts], axis)

    def shape(self, name):
        axis, shape = self._axis(name), list(self._parts[0].shape(name))
        if axis is not None:
            shape[axis] = sum(part.shape(name)[axis] for part in self._parts)
        return tuple(shape)

    def path_of(self, name):
        return self._parts[0].path_of(name)
