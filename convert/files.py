"""Foreign files as lazy mappings from name to torch tensor.  Nothing in a file is ever run; tensors are memory-mapped."""
import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch

from mindblip2.checkpoint import CheckpointError

WRAPPERS = ("model", "state_dict", "module")  # LAVIS, Lightning, DeepSpeed put the tensors one level down


def read(path):
    """Name → tensor of a .pth, .bin, .pt, .safetensors file, a safetensors index, or a folder that holds one of them.

    Raises FileNotFoundError, or :class:`CheckpointError` for a file that is truncated, holds code, or holds no tensors."""
    path = _file_in(Path(path))
    if path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json"):
        return Safetensors(path)
    if path.suffix == ".ckpt":
        raise CheckpointError(f"{path} is a MindSpore file: to turn it into a torch file use --to_torch "
                              f"--mindspore_path {path} --torch_path out.pth")
    return _tensors(_load(path), path)


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
                raise FileNotFoundError(f"{path.name} names the shard {file.name}, which is not in {file.parent.absolute()}")
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
    return state.shape(name) if isinstance(state, Safetensors) else tuple(state[name].shape)


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


def _load(path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        reason = str(error)
        if "Unsupported global" in reason or "Unsupported operand" in reason or "Unsupported class" in reason:
            raise CheckpointError(
                f"REFUSED: {path} holds code, not only tensors, and nothing of it was run.  If you trust where it comes from, "
                f"load it with LAVIS, save model.state_dict() and convert that.  torch says: {_first_line(reason)}") from None
        raise CheckpointError(f"{path} is damaged or no torch file: {_first_line(reason)}") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is truncated, damaged or no torch file ({path.stat().st_size:,} bytes): "
                              f"{_first_line(str(error))}.  Get it again and compare the size") from None


def _is_zip(path):
    """Only torch's zip format (1.6 and later) can be memory-mapped; older files are read whole."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _tensors(loaded, path):
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(v, torch.Tensor) for v in loaded.values()):
        raise CheckpointError(f"{path} holds no state dict: expected a mapping of names to tensors, or such a mapping under "
                              f"{' or '.join(WRAPPERS)}")
    return loaded


def _first_line(text):
    return next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")[:300]
