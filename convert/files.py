"""Foreign files as lazy mappings from name to torch tensor.  Nothing in a file is ever run."""
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from mindblip2.checkpoint import CheckpointError

WRAPPERS = ("model", "state_dict", "module")  # LAVIS, Lightning, DeepSpeed put the tensors one level down
REMAP_BYTES = 512 * 1024 * 1024


def read(path):
    """Name → tensor of a .pth, .bin, .pt, .safetensors file, a safetensors index, or a folder that holds one of them.

    Raises FileNotFoundError, or :class:`CheckpointError` for a file that is truncated, holds code, or holds no tensors."""
    path = _file_in(Path(path))
    if path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json"):
        return Safetensors(path)
    if _starts_with(path, b"\n"):
        raise CheckpointError(f"{path} is a MindSpore file: to turn it into a torch file use --to_torch "
                              f"--mindspore_path {path} --torch_path out.pth")
    return TorchFile(path)


class TorchFile(Mapping):
    """Tensors of a torch file.  A zip file, torch's format since 1.6, is mapped into memory, and mapped anew after every
    ``REMAP_BYTES`` that were handed out: until then the kernel counts the pages that were read as memory of the process."""

    def __init__(self, path):
        self._path, self._handed_out = path, 0
        self._mapped = _starts_with(path, b"PK")
        self._tensors = _tensors(_load(path, self._mapped), path)

    def __getitem__(self, name):
        self._handed_out += self._tensors[name].nbytes
        if self._mapped and self._handed_out > REMAP_BYTES:
            self._handed_out = 0
            self._tensors = _tensors(_load(self._path, True), self._path)
        return self._tensors[name]

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self):
        return len(self._tensors)

    def shape(self, name):
        return tuple(self._tensors[name].shape)


class Safetensors(Mapping):
    """Tensors of one .safetensors file, or of all shards that an index names."""

    def __init__(self, path):
        try:
            from safetensors import safe_open
        except ImportError:
            raise CheckpointError(f"{path} needs the safetensors package: pip install 'mindblip2[parity]'") from None
        files = [path]
        if path.suffix == ".json":
            files = [path.parent / name for name in sorted(set(json.loads(path.read_text())["weight_map"].values()))]
        self._files = {}
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"{path.name} names the shard {file.name}, which is not in "
                                        f"{file.parent.absolute()}")
            try:
                opened = safe_open(str(file), framework="pt")
            except Exception as error:  # the library's error class is not exported
                raise CheckpointError(f"{file} is truncated or no safetensors file: {error}") from None
            self._files.update(dict.fromkeys(opened.keys(), opened))

    def __getitem__(self, name):
        return self._files[name].get_tensor(name)

    def __iter__(self):
        return iter(self._files)

    def __len__(self):
        return len(self._files)

    def shape(self, name):
        return tuple(self._files[name].get_slice(name).get_shape())


def shape_of(state, name):
    """Shape of a tensor without reading it."""
    return state.shape(name) if isinstance(state, (TorchFile, Safetensors)) else tuple(state[name].shape)


def _file_in(path):
    if path.is_dir():
        for name in ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"):
            if (path / name).is_file():
                return path / name
        raise FileNotFoundError(f"the folder {path.absolute()} holds no model.safetensors, index or pytorch_model.bin")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path.absolute()}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty")
    return path


def _starts_with(path, head):
    with open(path, "rb") as file:
        return file.read(len(head)) == head


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


def _tensors(loaded, path):
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
