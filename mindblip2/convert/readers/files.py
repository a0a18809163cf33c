"""Foreign files as lazy mappings from name to torch tensor.  Nothing in a file is ever run."""

import os
from pathlib import Path

import torch

from mindblip2.checkpoint.ckpt import CheckpointError
from mindblip2.convert.detect import strip_wrapper_prefixes
from mindblip2.convert.readers.lazy_state_dict import LazyStateDict
from mindblip2.convert.readers.mindspore_ckpt import read_ckpt
from mindblip2.convert.readers.safetensors_file import SafetensorsFile
from mindblip2.convert.readers.shards import MetaStateDict, find_shards, is_consolidated
from mindblip2.convert.readers.torch_file import TensorRecord, TorchFile, UnsupportedObject
from mindblip2.file_io import regular_file

WRAPPERS = ("model", "state_dict", "module")  # LAVIS, Lightning, DeepSpeed put the tensors one level down


def read_state_dict(path):
    """Name → tensor of a .pth, .bin, .pt, .safetensors file, of all shards that an index or their numbers
    name, of a folder that holds one of these, of Meta's consolidated.*.pth, or of a .ckpt (MindFormers', or a
    language model of ours).  A prefix that a wrapper put before all names is left out.

    Raises FileNotFoundError, also for a missing shard, or :class:`CheckpointError` for a file that is
    truncated, holds code, or holds no tensors."""
    paths, promised = find_shards(Path(path))
    for file in paths:
        if regular_file(file).stat().st_size == 0:
            raise CheckpointError(f"{file} is empty")
    if is_consolidated(paths):
        return MetaStateDict([FileStateDict([file]) for file in paths], paths[0].parent)
    if len(paths) == 1 and paths[0].suffix != ".safetensors" and _starts_with(paths[0], b"\n"):
        return read_ckpt(paths[0])
    files = FileStateDict(paths)
    for name, file in promised.items():
        if name not in files or files.path_of(name) != file:
            raise CheckpointError(
                f"the index beside {file} says that {name} is in it, but it is not: get both again"
            )
    return strip_wrapper_prefixes(files)


def load_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """All tensors of one .pth, .bin, .pt or .safetensors file in memory, by the names in the file.

    For a torch file this is what ``torch.load(path, weights_only=True)`` returns (or holds under ``model``,
    ``state_dict`` or ``module``), but nothing is unpickled; tensors that share memory in the file are separate
    here.  Raises FileNotFoundError, or :class:`CheckpointError` as :func:`read`."""
    return dict(FileStateDict([Path(path)]))


class FileStateDict(LazyStateDict):
    """Tensors of one file, or of the shards of one model, in the order of the files.  Each is read when it is
    asked for, into memory of its own."""

    def __init__(self, paths):
        self.names = {}  # → (file, record)
        for path in paths:
            file = SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)
            records = file.content if path.suffix == ".safetensors" else _state_dict(file.content, path)
            for name, record in records.items():
                if name in self.names:
                    raise CheckpointError(
                        f"{name} is in {self.path_of(name)} and in {path}: shards of one model hold each "
                        "tensor once; "
                        "get them again"
                    )
                self.names[name] = file, record

    def __getitem__(self, name):
        file, record = self.names[name]
        return file.tensor(record)

    def shape(self, name):
        return self.names[name][1].shape

    def path_of(self, name):
        return self.names[name][0].path


def _starts_with(path, head):
    with open(path, "rb") as file:
        return file.read(len(head)) == head


def _state_dict(loaded, path):
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if (
        not isinstance(loaded, dict)
        or not loaded
        or not any(isinstance(value, TensorRecord | UnsupportedObject) for value in loaded.values())
    ):
        raise CheckpointError(
            f"{path} holds no state dict: expected a mapping of names to tensors, or such a mapping "
            f"under {' or '.join(WRAPPERS)}"
        )
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, TensorRecord):
            what = (
                "no text"
                if isinstance(value, TensorRecord)
                else value.what
                if isinstance(value, UnsupportedObject)
                else f"a {type(value).__name__}"
            )
            raise CheckpointError(
                f"{path} holds no state dict: {name!r:.80} is {what}, expected names (text) and dense "
                "tensors; save "
                "model.state_dict() alone"
            )
    return loaded
