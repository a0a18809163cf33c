"""The plan of a conversion: for every parameter of the model where it comes from, for every tensor of the files where it goes.

A tensor that goes nowhere and a parameter that comes from nowhere are errors; the plan is complete before a byte is written.
"""
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from convert.names import BERT, EVA, HF, LAVIS, copied_from, foreign_name
from convert.state import shape_of
from mindblip2.checkpoint import CheckpointError
from mindblip2.config import Blip2Config, ViTConfig
from mindblip2.sections import ConfigError

TYPES = {torch.float32: "Float32", torch.float16: "Float16", torch.bfloat16: "BFloat16", torch.float64: "Float64"}
NARROW = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SEED = 42


@dataclass(frozen=True)
class Row:
    """One line of the table.  action: mapped, copied, made or dropped."""
    action: str
    ours: str
    theirs: str
    note: str = ""
    state: object = None
    shape: tuple = ()


def detect(state, path):
    """Which kind of file this is, by its names."""
    names = set(state)
    if any(n.startswith(("opt_proj", "llm_proj", "t5_proj", "language_projection")) for n in names):
        raise CheckpointError(f"{path} is a stage-2 checkpoint (it has a projection into a language model); here stage 1 is "
                              "converted: give blip2_pretrained.pth")
    if any(n.startswith("Qformer.bert.") for n in names):
        return LAVIS
    if "vision_model.post_layernorm.weight" in names and any(n.startswith("qformer.encoder.") for n in names):
        return HF
    if "blocks.0.attn.qkv.weight" in names:
        return EVA
    if any(n.startswith("bert.encoder.layer.0.") for n in names):
        return BERT
    raise CheckpointError(f"{path} is none of the files that can be converted (LAVIS stage 1, eva_vit_g, bert-base-uncased, "
                          f"transformers blip2-itm, MindFormers): its names begin with {', '.join(sorted(names)[:3])}")


def read_config(main, vit, kind, image_size=None):
    """The dimensions as the files' own shapes tell them.  Heads are in no shape and do not matter to the conversion."""
    try:
        return _read_config(main, vit, kind, image_size)
    except (CheckpointError, ConfigError):
        raise
    except KeyError as error:
        raise CheckpointError(f"the files hold no {error.args[0]}, without which they are no BLIP-2 stage 1") from None
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"no dimensions can be read off the files ({error}): give --config") from None


def _read_config(main, vit, kind, image_size):
    vision = _read_vision(main, kind) if vit is None else _read_vision(vit, EVA)
    qformer = _read_qformer(main, kind)
    if image_size:
        vision["image_size"] = image_size
    return Blip2Config(max_txt_len=min(Blip2Config.max_txt_len, qformer["max_position_embeddings"]),
                       vision_config=vision, qformer_config={**qformer, "encoder_width": vision["hidden_size"]})


def _read_vision(state, kind):
    root, block = {LAVIS: ("visual_encoder.", "visual_encoder.blocks."), EVA: ("", "blocks."),
                   HF: ("vision_model.embeddings.", "vision_model.encoder.layers.")}[kind]
    patches, positions = ("patch_embedding", "position_embedding") if kind is HF else ("patch_embed.proj", "pos_embed")
    depth = _count(state, block)
    if depth == 0:
        raise CheckpointError("the file holds no ViT (LAVIS does not save what is frozen): add --vit_path eva_vit_g.pth")
    width, _, _, patch = shape_of(state, f"{root}{patches}.weight")
    side = round((shape_of(state, root + positions)[1] - 1) ** 0.5)
    return {"image_size": side * patch, "patch_size": patch, "hidden_size": width,
            "intermediate_size": shape_of(state, f"{block}0.mlp.fc1.weight")[0],
            "num_hidden_layers": _blocks_used(depth) if kind is EVA else depth, "num_attention_heads": _heads(width, 88)}


def _read_qformer(state, kind):
    root, layer = {LAVIS: ("Qformer.bert.", "Qformer.bert.encoder.layer."), HF: ("", "qformer.encoder.layer."),
                   BERT: ("bert.", "bert.encoder.layer.")}[kind]
    vocab, width = shape_of(state, root + "embeddings.word_embeddings.weight")
    layers, vocab = _count(state, layer), vocab + (kind is BERT)  # [DEC]
    sizes = {"vocab_size": vocab, "bos_token_id": vocab - 1, "hidden_size": width, "num_hidden_layers": layers,
             "num_attention_heads": _heads(width, 64),
             "intermediate_size": shape_of(state, layer + "0.intermediate.dense.weight")[0],
             "max_position_embeddings": shape_of(state, root + "embeddings.position_embeddings.weight")[0]}
    if kind is BERT:  # it has no cross-attention, queries and heads yet: the defaults
        return sizes
    crossing = sorted({int(n[len(layer):].split(".")[0]) for n in state if n.startswith(layer) and ".crossattention." in n})
    return {**sizes, "query_length": shape_of(state, "query_tokens")[1],
            "head_embed_dim": shape_of(state, "vision_projection.weight" if kind is HF else "vision_proj.weight")[0],
            "cross_attention_freq": crossing[1] if len(crossing) > 1 else layers}  # only the first: its period is the depth


def make_plan(main, kind, vit, parameters, config):
    """Rows for all ``parameters`` (name → shape) and all tensors of the files; raises on a leftover or a missing one."""
    freq = config.qformer_config.cross_attention_freq
    rows, used = [], {id(main): set(), id(vit): set()}
    for name, shape in parameters.items():
        state, source = (vit, EVA) if vit is not None and name.startswith("vit.") else (main, kind)
        rows.append(_row(name, shape, state, source, freq, used[id(state)]))
    rows += _leftovers(main, kind, used[id(main)], None)
    if vit is not None:
        rows += _leftovers(vit, EVA, used[id(vit)], f"blocks.{config.vision_config.num_hidden_layers}.")
    problems = [r for r in rows if r.action in ("missing", "leftover", "shape")]
    if problems:
        raise CheckpointError(_report(problems))
    _check_tied(main)
    return rows


def _report(problems):
    lines = [f"  {r.action}: {r.ours or r.theirs} {r.note}" for r in problems]
    shown = lines[:12] + ([f"  … and {len(lines) - 12} more"] if len(lines) > 12 else [])
    advice = "check --config, and that the files belong together"
    if all(r.action == "missing" and r.ours.startswith("vit.") for r in problems):
        advice = "add --vit_path eva_vit_g.pth, or check --config"
    return "\n".join([f"the files do not make this model: {len(lines)} problems", *shown, f"Nothing was written: {advice}"])


def _check_tied(state):
    """Tied tensors are kept once, so both names must hold the same numbers."""
    for name in state:
        for end, owner in (("weight", "bert.embeddings.word_embeddings.weight"), ("bias", "cls.predictions.bias")):
            head, found, rest = name.rpartition(f"cls.predictions.decoder.{end}")
            if found and not rest and not torch.equal(state[name], state[head + owner]):
                raise CheckpointError(f"{name} and {head + owner} differ, but BLIP-2 ties them: this is another model")


def tensor(row, rows):
    """The torch tensor of a row, in our shape."""
    if row.action == "made":
        return _made(row.ours, row.shape)
    value = row.state[row.theirs]
    if row.ours.endswith("patch_embed.proj.weight"):
        return value.reshape(row.shape)  # a convolution whose kernel is its stride is one product per patch
    if row.ours == "vit.pos_embed" and tuple(value.shape) != row.shape:
        return interpolate(value, row.shape[1])
    if row.theirs.endswith("qkv.bias"):
        third = row.shape[0]
        return value[:third] if row.ours.endswith("q_bias") else value[-third:]
    if value.ndim and value.shape[0] + 1 == row.shape[0]:
        return torch.cat([value, _made(row.ours, (1, *row.shape[1:])).to(value.dtype)])  # the row of [DEC]
    return value


def interpolate(pos_embed, tokens):
    """Position embeddings (1, P, D) for another grid, as LAVIS ``interpolate_pos_embed``: bicubic over the grid, float32, the
    class token's row untouched."""
    width = pos_embed.shape[-1]
    old, new = (round((n - 1) ** 0.5) for n in (pos_embed.shape[1], tokens))
    grid = pos_embed[:, 1:].float().reshape(1, old, old, width).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([pos_embed[:, :1].float(), grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)


def cast(value, dtype):
    """Matrices in ``dtype``, all else in float32: norms, biases and position embeddings are small.  None: as they are."""
    if dtype is not None:
        value = value.to(NARROW[dtype] if value.ndim == 2 else torch.float32)
    return value


def to_numpy(value):
    """(MindSpore's type name, array); bfloat16 travels as its 16 bits."""
    value = value.detach().contiguous()
    if value.dtype not in TYPES:
        raise CheckpointError(f"a tensor of type {value.dtype} and shape {tuple(value.shape)} can be no weight of this model: "
                              "convert a file of floating point numbers")
    if value.dtype == torch.bfloat16:
        return "BFloat16", value.view(torch.int16).numpy().view(np.uint16)
    return TYPES[value.dtype], value.numpy()


def table(rows):
    """The coverage as text: a line per part, then what was made, copied and dropped, with the reasons."""
    parts = Counter((_part(r.ours), r.action) for r in rows if r.ours)
    lines = ["part          parameters   mapped   copied     made"]
    for part in dict.fromkeys(p for p, _ in parts):
        counts = [parts[part, action] for action in ("mapped", "copied", "made")]
        lines.append(f"{part:<14}{sum(counts):>10}{counts[0]:>9}{counts[1]:>9}{counts[2]:>9}")
    reasons = Counter((r.action, r.note) for r in rows if r.note)
    examples = {(r.action, r.note): r.ours or r.theirs for r in reversed(rows) if r.note}
    for (action, note), count in reasons.items():
        lines.append(f"{action}: {count:>4} x {note} (e.g. {examples[action, note]})")
    return "\n".join(lines)


def _row(name, shape, state, source, freq, used):
    copy = copied_from(source, name, freq)
    action, note, expected = "mapped", "", foreign_name(source, copy or name, freq)
    if copy is not None:
        action, note = "copied", "query feed-forward starts as the text feed-forward's copy"
    if source is HF and name.endswith(("attn.q_bias", "attn.v_bias")):
        expected = foreign_name(source, name.rpartition(".")[0] + ".qkv.bias")
        note = "q and v parts of the fused bias; the k part has no effect: the softmax ignores it"
    if expected is None:  # files of this kind have no such module
        reason = next((why for prefix, why in source.makes if name.startswith(prefix)), None)
        return Row("made" if reason else "missing", name, "", reason or "has no place in such a file", None, shape)
    theirs = _present(expected, state)
    if theirs is None:
        return Row("missing", name, "", f"is in no file (expected as {expected})", None, shape)
    used.add(theirs)
    return _checked(Row(action, name, theirs, note, state, shape), shape_of(state, theirs))


def _checked(row, got):
    flat = (got[0], int(np.prod(got[1:]))) if len(got) == 4 else got
    if flat == row.shape:
        return row
    if row.ours == "vit.pos_embed" and got[-1] == row.shape[-1]:
        note = f"interpolated from {got[1]} to {row.shape[1]} tokens"
    elif row.ours in ("qformer.embeddings.word.embedding_table", "qformer.lm_head.bias") and got[0] + 1 == row.shape[0]:
        note = "one row added for [DEC]"
    elif row.theirs.endswith("qkv.bias") and got[0] == 3 * row.shape[0]:
        note = row.note
    else:
        return Row("shape", row.ours, row.theirs, f"({row.theirs}) has {got}, the model {row.shape}")
    return Row(row.action, row.ours, row.theirs, note, row.state, row.shape)


def _leftovers(state, source, used, extra_block):
    for theirs in state:
        if theirs in used:
            continue
        reason = next((why for mark, why in source.known if theirs.startswith(mark) or theirs.endswith(mark)), None)
        if extra_block and theirs.startswith(extra_block):
            reason = f"block {extra_block.split('.')[1]}: unused, BLIP-2 reads the output of the block before it"
        yield Row("dropped" if reason else "leftover", "", theirs, reason or "has no place in the model")


def _present(theirs, state):
    if theirs in state:
        return theirs
    if theirs and "LayerNorm" in theirs:  # BERT files that came from TensorFlow
        older = theirs.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        return older if older in state else None
    return None


def _made(name, shape):
    leaf = name.rpartition(".")[2]
    if name == "temp":
        return torch.tensor(Blip2Config().temperature)
    if leaf == "gamma":
        return torch.ones(shape)
    if leaf in ("beta", "bias"):
        return torch.zeros(shape)
    seed = sum(ord(c) * 31 ** i for i, c in enumerate(name)) % 2 ** 31 + SEED
    return torch.empty(shape).normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))


def _part(name):
    return {"vit": "ViT", "qformer": "Q-Former", "ln_vision": "ln_vision"}.get(name.split(".")[0], "heads")


def _count(state, prefix):
    return 1 + max((int(n[len(prefix):].split(".")[0]) for n in state if n.startswith(prefix)), default=-1)


def _heads(width, head):
    return width // head if width % head == 0 else 1


def _blocks_used(depth):
    """Of EVA's own file the last block is unused.  A ViT of as many blocks as BLIP-2 has was saved by LAVIS: all are."""
    return depth if depth == ViTConfig().num_hidden_layers else depth - 1
