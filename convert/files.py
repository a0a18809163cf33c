"""Foreign files as lazy mappings from name to torch tensor.  Nothing in a file is ever run."""
import pickle
import re
from pathlib import Path

import torch

from convert.mindspore_files import read_ckpt
from convert.shards import Joined, is_consolidated, parts
from convert.state import State
from mindblip2.checkpoint import CheckpointError

WRAPPERS = ("model", "state_dict", "module")  # LAVIS, Lightning, DeepSpeed put the tensors one level down
REMAP_BYTES = 512 * 1024 * 1024
REMAP_SHARE = 4


def read(path):
    """Name → tensor of a .pth, .bin, .pt, .safetensors file, of all shards that an index or their numbers name, of a folder that
    holds one of these, of Meta's consolidated.*.pth, or of a .ckpt (MindFormers', or a language model of ours).

    Raises FileNotFoundError, also for a missing shard, or :class:`CheckpointError` for a file that is truncated, holds code, or
    holds no tensors."""
    paths, promised = parts(Path(path))
    for file in paths:
        if file.stat().st_size == 0:
            raise CheckpointError(f"{file} is empty")
    if is_consolidated(paths):
        return Joined([Files([file], share=REMAP_SHARE * len(paths)) for file in paths], paths[0].parent)
    if len(paths) == 1 and _starts_with(paths[0], b"\n"):
        return read_ckpt(paths[0])
    files = Files(paths)
    for name, file in promised.items():
        if files.names.get(name) != file:
            raise CheckpointError(f"the index beside {file} says that {name} is in it, but it is not: get both again")
    return files


class Files(State):
    """Tensors of one file, or of the shards of one model, in the order of the files.

    One shard is open at a time, mapped into memory, and it is opened anew after ``REMAP_BYTES``, or a ``share`` of its size, were
    handed out: until then the kernel counts the pages that were read as memory of the process."""

    def __init__(self, paths, share=REMAP_SHARE):
        self.names, self._share, self._shapes = {}, share, {}  # names: which file has it
        for path in paths:
            self._open(path)
            for name, tensor in self._tensors.items():
                self.names[name], self._shapes[name] = path, tuple(tensor.shape)

    def _open(self, path):
        self._tensors = None    # let go of the other shard first
        self._path, self._tensors, self._handed_out = path, _tensors(path), 0

    def __getitem__(self, name):
        path = self.names[name]
        if path != self._path or self._is_too_much(self._tensors[name].nbytes):
            self._open(path)
        self._handed_out += self._tensors[name].nbytes
        return self._tensors[name]

    def _is_too_much(self, size):
        most = min(REMAP_BYTES, self._path.stat().st_size // self._share)
        return 0 < self._handed_out > most - size and _mappable(self._path)

    def shape(self, name):
        return self._shapes[name]


def _tensors(path):
    return _read_safetensors(path) if path.suffix == ".safetensors" else _state_dict(_load(path, _mappable(path)), path)


def _mappable(path):
    """A safetensors file, or a torch file in torch's format since 1.6, which is a zip file."""
    return path.suffix == ".safetensors" or _starts_with(path, b"PK")


def _starts_with(path, head):
    with open(path, "rb") as file:
        return file.read(len(head)) == head


def _read_safetensors(path):
    try:
        from safetensors import safe_open
    except ImportError:
        raise CheckpointError(f"{path} needs the safetensors package: pip install 'mindblip2[parity]'") from None
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # views of the mapped file, not read yet
    except Exception as error:  # the library's error class is not exported
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}") from None


def _load(path, mapped):
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL [\w.]+|Unsupported \w+ [\w.]+", str(error))
        if found and (_starts_with(path, b"PK") or _starts_with(path, b"\x80") or "GLOBAL" in found[0]):
            raise CheckpointError(
                f"REFUSED: {path} holds more than tensors ({found[0]}), which could run code; nothing of it was run.  If you "
                "trust where it comes from, load it with LAVIS, save model.state_dict() and convert that") from None
        raise CheckpointError(f"{path} is damaged or no torch file ({path.stat().st_size:,} bytes).  Get it again") from None
    except Exception as error:  # a damaged file fails in as many ways as a pickle has opcodes
        raise CheckpointError(f"{path} is truncated, damaged or no torch file ({path.stat().st_size:,} bytes): "
                              f"{_first_line(error)}.  Get it again and compare the size") from None


def _state_dict(loaded, path):
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise CheckpointError(f"{path} holds no state dict: expected a mapping of names to tensors, or such a mapping "
                              f"under {' or '.join(WRAPPERS)}")
    return loaded


def _first_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]
