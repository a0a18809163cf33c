"""MindSpore .ckpt files as lazy mappings from foreign name to torch tensor: MindFormers', and our own
language models."""

import torch

from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError
from mindblip2.convert.readers.lazy_state_dict import LazyStateDict


def read_ckpt(path):
    """Name → tensor of a .ckpt: MindFormers' under LAVIS's names, or a language model of ours under its own.
    Raises :class:`CheckpointError` for another."""
    stored = Checkpoint(path)
    if any(".attention.dense1." in name or ".self_att." in name for name in stored):
        return MindFormersStateDict(stored)
    if all(name.startswith("llm.") for name in stored):
        return ConvertedStateDict(stored)
    raise CheckpointError(
        f"{path} is a MindSpore file without MindFormers' names: to turn a .ckpt of mindblip2 into a "
        f"torch file use --to_torch --mindspore_path {path} --torch_path out.pth"
    )


class MindFormersStateDict(LazyStateDict):
    """Tensors of a MindFormers r1.0 .ckpt under the names of LAVIS, from whose file its script had made it.

    It splits the ViT's qkv into three products with a bias each, and keeps some matrices the other way round,
    (in, out).  The script of r1.0 wrote the two matrices of the ViT's feed-forward under each other's name;
    their shapes tell which is which."""

    VIT = {
        "cls_tokens": "cls_token",
        "layernorm1.": "norm1.",
        "layernorm2.": "norm2.",
        "attention.projection.": "attn.proj.",
        "attention.dense1.bias": "attn.q_bias",
        "attention.dense3.bias": "attn.v_bias",
        "output.mapping.bias": "mlp.fc1.bias",
        "output.projection.bias": "mlp.fc2.bias",
    }
    QFORMER = {"qformer.": "Qformer.", ".layernorm.": ".LayerNorm.", ".self_att.": ".self."}
    LEAVES = {".gamma": ".weight", ".beta": ".bias", ".embedding_table": ".weight"}
    UNUSED = (
        "adam_m.",
        "adam_v.",
        "beta1_power",
        "beta2_power",
        "global_step",
        "learning_rate",
        "epoch_num",
        "step_num",
        # of the training
        "loss_scale",
        "scale_sense",
        "current_iterator_step",
        "last_overflow_iterator_step",
    )

    def __init__(self, stored):
        # LAVIS's name → (names in the file, whether it is turned there)
        self._stored, self.names = stored, {}
        for name in self._stored:
            # the softmax ignores this one
            if not name.startswith(self.UNUSED) and not name.endswith(".attention.dense2.bias"):
                theirs, turned = self._lavis(name)
                self.names.setdefault(theirs, ([], turned))[0].append(name)

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
        names, turned = self.names[name]
        parts = [from_numpy(self._stored[one], self._stored.types[one]) for one in sorted(names)]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        return value.T if turned else value

    def shape(self, name):
        names, turned = self.names[name]
        first = self._stored.shapes[names[0]]
        shape = (len(names) * first[0], *first[1:]) if names[1:] else first
        return shape[::-1] if turned else shape

    def path_of(self, name):
        return self._stored.path


class ConvertedStateDict(LazyStateDict):
    """Tensors of a language model that was converted before, to be joined with a bridge."""

    def __init__(self, stored):
        self.names, self._stored = stored.shapes, stored

    def __getitem__(self, name):
        return from_numpy(self._stored[name], self._stored.types[name])

    def shape(self, name):
        return self._stored.shapes[name]

    def path_of(self, name):
        return self._stored.path


def from_numpy(array, kind):
    """The torch tensor of an array of :class:`Checkpoint`, whose type there is ``kind``."""
    value = torch.from_numpy(array.view("int16") if kind == "BFloat16" else array)
    return value.view(torch.bfloat16) if kind == "BFloat16" else value
