"""The plan of a conversion: for every parameter of the model where it comes from, for every tensor of the
files where it goes.

A tensor that goes nowhere and a parameter that comes from nowhere are errors; the plan is complete before a
byte is written.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mindblip2.checkpoint.ckpt import CheckpointError, check_values, count_not_finite
from mindblip2.convert.name_maps.blip2 import EVA, copy_source, source_name
from mindblip2.convert.readers.lazy_state_dict import shape_of
from mindblip2.convert.tensor_transforms import find_transform, initial_value

TYPES = {
    torch.float32: "Float32",
    torch.float16: "Float16",
    torch.bfloat16: "BFloat16",
    torch.float64: "Float64",
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PARTS = {"vit": "ViT", "qformer": "Q-Former", "ln_vision": "ln_vision", "llm_proj": "llm_proj", "llm": "LLM"}


@dataclass(frozen=True)
class Row:
    """One line of the table.  action: mapped, copied, made or dropped.  change: what becomes of the tensor,
    None: nothing."""

    action: str
    ours: str
    theirs: str
    note: str = ""
    state: object = None
    shape: tuple = ()
    change: Callable | None = None


def make_plan(main, kind, vit, parameters, config, llm=None):
    """Rows for all ``parameters`` (name → shape) and all tensors of the files; raises on a leftover or a
    missing one.

    ``vit``: a file of EVA, or None where the ViT is in ``main``; ``llm``: (file, its kind) of a language
    model, or None where there is none or it is in ``main``."""
    freq, text = config.qformer_config.cross_attention_freq, config.text_config
    files = {
        "": (main, kind),
        **({"vit": (vit, EVA)} if vit is not None else {}),
        **({"llm": llm} if llm else {}),
    }
    rows, used = [], {part: set() for part in files}
    for name, shape in parameters.items():
        part = name.split(".")[0] if name.split(".")[0] in files else ""
        rows.append(_row(name, shape, *files[part], freq, text, used[part]))
    last = f"blocks.{config.vision_config.num_hidden_layers}."
    for part, (state, source) in files.items():
        rows += _leftovers(state, source, used[part], last if part == "vit" else None)
    problems = [r for r in rows if r.action in ("missing", "leftover", "shape")]
    if problems:
        raise CheckpointError(_report(problems))
    for state, source in files.values():
        _check_tied(state, source)
    return rows


def _report(problems):
    lines = [f"  {r.action}: {r.ours or r.theirs} {r.note}" for r in problems]
    shown = lines[:12] + ([f"  … and {len(lines) - 12} more"] if len(lines) > 12 else [])
    advice = "check --config, and that the files belong together"
    if all(r.action == "missing" and r.ours.startswith("vit.") for r in problems):
        advice = "add --vit_path eva_vit_g.pth, or check --config"
    return "\n".join(
        [f"the files do not make this model: {len(lines)} problems", *shown, f"Nothing was written: {advice}"]
    )


def _check_tied(state, source):
    """Tied tensors are kept once, so both names must hold the same numbers."""
    for name, (owner, _) in source.tied.items():
        if name in state and not torch.equal(state[name], state[owner]):
            raise CheckpointError(
                f"{name} and {owner} differ, but {source.title} ties them: this is another model"
            )


def load_tensor(row):
    """The torch tensor of a row, in our shape.  Raises :class:`CheckpointError` where it holds a NaN or Inf,
    or a temperature that is not above 0."""
    if row.action == "made":
        return initial_value(row.ours, row.shape)
    value = row.state[row.theirs]
    path = row.state.path_of(row.theirs) if hasattr(row.state, "path_of") else "the state dict"
    kind, array = to_numpy(value)
    check_values(path, row.theirs, array, kind, row.ours == "temp")
    return row.change(value) if row.change else value


def in_file_order(rows):
    """The rows that have a parameter, in the order in which their tensors lie in the files: each shard is
    read once."""
    order = {}
    for row in rows:
        if row.state is not None and id(row.state) not in order:
            order[id(row.state)] = {name: (len(order), at) for at, name in enumerate(row.state)}
    return sorted(
        (row for row in rows if row.ours),
        key=lambda row: order.get(id(row.state), {}).get(row.theirs, (-1, 0)),
    )


def cast(value, dtype, name):
    """Matrices in ``dtype``, all else in float32: norms, biases and position embeddings are small.  None: as
    they are.  Raises :class:`CheckpointError` where a number of ``name`` is too large for it."""
    if dtype is None:
        return value
    narrow = value.to(DTYPES[dtype] if value.ndim == 2 else torch.float32)
    kind, array = to_numpy(narrow)
    if narrow.dtype != value.dtype and (bad := count_not_finite(array, kind)):
        raise CheckpointError(
            f"{bad:,} numbers of {name} are beyond {torch.finfo(narrow.dtype).max:g}, the largest of {kind}: "
            "choose "
            "another --dtype, or leave it out"
        )
    return narrow


def to_numpy(value):
    """(MindSpore's type name, array); bfloat16 travels as its 16 bits."""
    value = value.detach().contiguous()
    if value.dtype not in TYPES:
        raise CheckpointError(
            f"a tensor of type {value.dtype} and shape {tuple(value.shape)} can be no weight of this model: "
            "convert a file of floating point numbers"
        )
    if value.dtype == torch.bfloat16:
        return "BFloat16", value.view(torch.int16).numpy().view(np.uint16)
    return TYPES[value.dtype], value.numpy()


def coverage_table(rows, remarks=()):
    """The coverage as text: a line per part, then what was made, copied and dropped, with the reasons, then
    the ``remarks``."""
    parts = Counter((PARTS.get(r.ours.split(".")[0], "heads"), r.action) for r in rows if r.ours)
    lines = ["part          parameters   mapped   copied     made"]
    for part in dict.fromkeys(p for p, _ in parts):
        counts = [parts[part, action] for action in ("mapped", "copied", "made")]
        lines.append(f"{part:<14}{sum(counts):>10}{counts[0]:>9}{counts[1]:>9}{counts[2]:>9}")
    reasons = Counter((r.action, r.note) for r in rows if r.note)
    examples = {(r.action, r.note): r.ours or r.theirs for r in reversed(rows) if r.note}
    for (action, note), count in reasons.items():
        lines.append(f"{action}: {count:>4} x {note} (e.g. {examples[action, note]})")
    return "\n".join([*lines, *(f"note:    {remark}" for remark in remarks)])


def _row(name, shape, state, source, freq, text_config, used):
    copy, why = copy_source(source, name, freq) or (None, "")
    if copy is not None and source_name(source, name, freq) in state:
        copy, why = None, ""
    expected = source_name(source, copy or name, freq)
    if expected is None:  # files of this kind have no such module
        reason = next((why for prefix, why in source.makes if name.startswith(prefix)), None)
        return Row(
            "made" if reason else "missing", name, "", reason or "has no place in such a file", None, shape
        )
    theirs = _present(expected, state)
    if theirs is None:
        return Row("missing", name, "", f"is in no file (expected as {expected})", None, shape)
    used.add(theirs)
    got = shape_of(state, theirs)
    found = find_transform(source, name, theirs, got, shape, text_config)
    if found is None:
        return Row("shape", name, theirs, f"({theirs}) has {got}, the model {shape}")
    return Row("copied" if copy else "mapped", name, theirs, found[0] or why, state, shape, found[1])


def _leftovers(state, source, used, extra_block):
    known = [*source.known, *((f"^{re.escape(name)}$", reason) for name, (_, reason) in source.tied.items())]
    for theirs in state:
        if theirs in used:
            continue
        reason = next((why for mark, why in known if re.search(mark, theirs)), None)
        if extra_block and theirs.startswith(extra_block):
            reason = (
                f"block {extra_block.split('.')[1]}: unused, BLIP-2 reads the output of the block before it"
            )
        yield Row("dropped" if reason else "leftover", "", theirs, reason or "has no place in the model")


def _present(theirs, state):
    if theirs in state:
        return theirs
    if theirs and "LayerNorm" in theirs:  # BERT files that came from TensorFlow
        older = theirs.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        )
        return older if older in state else None
    return None
