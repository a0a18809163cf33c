"""Foreign files as lazy mappings from name to torch tensor.  Nothing in a file is ever run."""
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from mindblip2.checkpoint import Checkpoint, CheckpointError

WRAPPERS = ("model", "state_dict", "module")  # LAVIS, Lightning, DeepSpeed put the tensors one level down
REMAP_BYTES = 512 * 1024 * 1024


def read(path):
    """Name → tensor of a .pth, .bin, .pt, .safetensors file, a safetensors index, a folder that holds one of them, or a .ckpt
    of MindFormers.

    Raises FileNotFoundError, or :class:`CheckpointError` for a file that is truncated, holds code, or holds no tensors."""
    path = _file_in(Path(path))
    if path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json"):
        return Safetensors(path)
    return MindFormers(path) if _starts_with(path, b"\n") else TorchFile(path)


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


class MindFormers(Mapping):
    """Tensors of a MindFormers r1.0 .ckpt under the names of LAVIS, from whose file its script had made it.

    It splits the ViT's qkv into three products with a bias each, and keeps some matrices the other way round, (in, out).  The
    script of r1.0 wrote the two matrices of the ViT's feed-forward under each other's name; their shapes tell which is which."""

    VIT = {"cls_tokens": "cls_token", "layernorm1.": "norm1.", "layernorm2.": "norm2.", "attention.projection.": "attn.proj.",
           "attention.dense1.bias": "attn.q_bias", "attention.dense3.bias": "attn.v_bias",
           "output.mapping.bias": "mlp.fc1.bias", "output.projection.bias": "mlp.fc2.bias"}
    QFORMER = {"qformer.": "Qformer.", ".layernorm.": ".LayerNorm.", ".self_att.": ".self."}
    LEAVES = {".gamma": ".weight", ".beta": ".bias", ".embedding_table": ".weight"}
    UNUSED = ("adam_m.", "adam_v.", "beta1_power", "beta2_power", "global_step", "learning_rate", "epoch_num", "step_num",
              "loss_scale", "scale_sense", "current_iterator_step", "last_overflow_iterator_step")  # of the training

    def __init__(self, path):
        self._stored, self._parts = Checkpoint(path), {}  # LAVIS's name → (names in the file, whether it is turned there)
        if not any(".attention.dense1." in name or ".self_att." in name for name in self._stored):
            raise CheckpointError(f"{path} is a MindSpore file without MindFormers' names: to turn a .ckpt of mindblip2 into a "
                                  f"torch file use --to_torch --mindspore_path {path} --torch_path out.pth")
        for name in self._stored:
            if not name.startswith(self.UNUSED) and not name.endswith(".attention.dense2.bias"):  # the softmax ignores this one
                theirs, turned = self._lavis(name)
                self._parts.setdefault(theirs, ([], turned))[0].append(name)

    def _lavis(self, name):
        block, product, _ = name.rpartition(".attention.dense")
        if product and name.endswith(".weight"):
            return f"{block}.attn.qkv.weight", False
        if name.endswith((".output.mapping.weight", ".output.projection.weight")):
            block = name.rpartition(".output.")[0]
            up = self._stored.shapes[name][0] == self._stored.shapes[f"{block}.layernorm1.gamma"][0]
            return f"{block}.mlp.{'fc1' if up else 'fc2'}.weight", True
        turned = name.endswith(".attention.projection.weight")
        for table in (self.QFORMER if name.startswith("qformer.") else self.VIT, self.LEAVES):
            for theirs, lavis in table.items():
                name = name.replace(theirs, lavis)
        return name, turned

    def __getitem__(self, name):
        names, turned = self._parts[name]
        parts = [from_numpy(self._stored[one], self._stored.types[one]) for one in sorted(names)]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        return value.T if turned else value

    def __iter__(self):
        return iter(self._parts)

    def __contains__(self, name):
        return name in self._parts  # Mapping's own would read the tensor

    def __len__(self):
        return len(self._parts)

    def shape(self, name):
        names, turned = self._parts[name]
        first = self._stored.shapes[names[0]]
        shape = (len(names) * first[0], *first[1:]) if names[1:] else first
        return shape[::-1] if turned else shape


def from_numpy(array, kind):
    """The torch tensor of an array of :class:`Checkpoint`, whose type there is ``kind``."""
    value = torch.from_numpy(array.view("int16") if kind == "BFloat16" else array)
    return value.view(torch.bfloat16) if kind == "BFloat16" else value


def shape_of(state, name):
    """Shape of a tensor without reading it."""
    return tuple(state[name].shape) if isinstance(state, dict) else state.shape(name)


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
