"""What is compared, part by part ("isolated": each part gets the truth's input, so none hides behind or
blames another).

Every case is a function of the twin and, by the same name in mindblip2/parity/candidate/stage1.py, of our
model. The losses are in mindblip2/parity/cases/losses.py. A new cell arrives here with its case and in
mindblip2/parity/defects/stage1.py with a defect that the case catches.

    # B batch · Q queries · P patches + cls · W image width · T text · L = Q + T · D width · H heads · K head
    width
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from mindspore import nn

from mindblip2.parity import seeded_weights
from mindblip2.parity.activation_hooks import twin_paths
from mindblip2.parity.candidate.chained import VERBS
from mindblip2.parity.candidate.stage1 import ours_of
from mindblip2.parity.model_triple import Case
from mindblip2.parity.reference.model import ReferenceModel, capture, not_pad
from mindblip2.parity.reference.qformer import caption_bias, padding_bias

COMPOSED = ("vit", "vit.patch_embed", "qformer.lm_head")  # more than one input, or a case of their own below


@torch.no_grad()
def recorded(
    twin: ReferenceModel, paths: dict[str, str], run: Callable[[], object]
) -> dict[str, list[np.ndarray]]:
    """What goes into each module during ``run``, by our path, in float32: all three networks get exactly
    this."""
    with capture(twin, paths.values(), inputs=True) as seen:
        run()
    return {ours: [x.float().numpy() for x in seen[theirs]] for ours, theirs in paths.items() if seen[theirs]}


def module_cases(paths: dict[str, str], inputs: dict[str, list[np.ndarray]]) -> Iterator[Case]:
    """Every single product, norm, attention and feed-forward that takes one tensor, on the first input it
    got."""
    for path, theirs in paths.items():
        composed = path in COMPOSED or path.rpartition(".")[2].isdigit() and "memory" not in path
        if path in inputs and not composed:
            yield Case(path, partial(their_module, path=theirs), ours_of(path), {"x": inputs[path][0]})


def their_module(twin: ReferenceModel, x, path: str):
    return twin.get_submodule(path)(x)


def below(model: nn.Cell, *prefixes: str) -> tuple[str, ...]:
    """The names of all parameters that begin so."""
    return tuple(name for name, _ in model.parameters_and_names() if name.startswith(prefixes))


# ---------------------------------------------------------------------------------------------------- the ViT
def patch_case(model: nn.Cell, image: np.ndarray) -> Case:
    """Pixels (B, 3, S, S) to one row per patch."""
    return Case(
        "vit.patch_embed",
        lambda twin, image: twin.visual_encoder.patch_embed(image),
        ours_of("vit.patch_embed"),
        {"image": image},
        below(model, "vit.patch_embed."),
        backward=True,
    )


def vit_case(model: nn.Cell, image: np.ndarray) -> Case:
    """The ViT end to end; by the class token and the positions, which belong to no part."""
    return Case(
        "vit",
        lambda twin, image: twin.vit(image),
        ours_of("vit"),
        {"image": image},
        below(model, "vit.cls_token", "vit.pos_embed"),
        backward=True,
        fixed=("image",),
    )


def block_case(
    model: nn.Cell, i: int, x_BPW: np.ndarray, backward: bool = True, label: int | None = None
) -> Case:
    """One ViT block; ``label`` is its number in the whole ViT where ``i`` is that in a window on it."""
    return Case(
        f"vit.blocks.{i if label is None else label}",
        lambda twin, x: twin.visual_encoder.blocks[i](x),
        ours_of(f"vit.blocks.{i}"),
        {"x": x_BPW},
        below(model, f"vit.blocks.{i}."),
        backward,
    )


def ln_vision_case(model: nn.Cell, x_BPW: np.ndarray) -> Case:
    """The norm between ViT and Q-Former."""
    return Case(
        "ln_vision",
        lambda twin, x: twin.ln_vision(x),
        ours_of("ln_vision"),
        {"x": x_BPW},
        below(model, "ln_vision."),
        backward=True,
    )


# ---------------------------------------------------------------------------------------------------- the Q-F
def qformer_inputs(twin: ReferenceModel, paths: dict[str, str], image_BPW: np.ndarray, ids: np.ndarray):
    """The inputs of every part when the four verbs run once each, the queries' keys and values (layer, key or
    value, …), and what ``see`` and ``read`` give."""
    image, text, out = (
        torch.from_numpy(image_BPW).to(twin.query_tokens.dtype),
        torch.from_numpy(ids).long(),
        {},
    )

    def run():
        out["see"], cache = twin.see(image)
        out["cache"] = torch.stack([torch.stack(pair) for pair in cache])
        out["read"] = twin.read(text)
        twin.match(text, image)
        out["caption"], _ = twin.caption(twin.started(text), cache)
        twin.Qformer.logits(out["caption"])
        twin.image_feats(out["see"])
        twin.text_feats(out["read"][:, 0])
        twin.itm_head(out["see"])

    inputs = recorded(
        twin, {path: theirs for path, theirs in paths.items() if not path.startswith("vit")}, run
    )
    return inputs, {name: value.float().numpy() for name, value in out.items()}


def qformer_cases(
    model: nn.Cell, twin: ReferenceModel, image_BPW: np.ndarray, ids: np.ndarray
) -> Iterator[Case]:
    """Memory, embeddings, every layer in every verb, heads, and every module in them, from image
    embeddings."""
    paths = twin_paths(model, twin.config.cross_attention_freq)
    inputs, out = qformer_inputs(twin, paths, image_BPW, ids)
    yield memory_case(model, image_BPW)
    yield from embed_cases(model, twin, ids)
    for i in range(twin.config.layers):
        for call, verb in enumerate(VERBS):
            arrays = {"x": inputs[f"qformer.encoder.layers.{i}"][call]}
            arrays |= {"ids": ids} if verb != "see" else {}
            arrays |= {"image": image_BPW} if verb in ("see", "match") else {}
            arrays |= dict(zip(("key", "value"), out["cache"][i], strict=True)) if verb == "caption" else {}
            yield layer_case(model, i, verb, arrays)
    yield from verb_cases(model, image_BPW, ids)
    yield from head_cases(model, image_BPW, ids, out)
    yield from module_cases(paths, {path: value for path, value in inputs.items() if path != "ln_vision"})


def memory_case(model: nn.Cell, image_BPW: np.ndarray) -> Case:
    """Keys and values of the image for every cross-attention layer."""

    def theirs(twin, image):
        crossing = [
            layer.crossattention for layer in twin.Qformer.bert.encoder["layer"] if layer.crossattention
        ]
        return [
            attention.split(attention.self[part](image))
            for attention in crossing
            for part in ("key", "value")
        ]

    return Case(
        "memory",
        theirs,
        ours_of("memory"),
        {"image": image_BPW},
        below(model, "qformer.memory."),
        backward=True,
    )


def embed_cases(model: nn.Cell, twin: ReferenceModel, ids: np.ndarray) -> Iterator[Case]:
    """Words and positions, and the queries, through BERT's first norm."""
    yield Case(
        "embed.text",
        lambda twin, ids: twin.Qformer.bert.embeddings(ids),
        ours_of("embed.text"),
        {"ids": ids},
        below(model, "qformer.embedding"),
        backward=True,
    )
    yield Case(
        "embed.queries",
        lambda twin, x: twin.Qformer.bert.embeddings.LayerNorm(x),
        ours_of("embed.queries"),
        {"x": twin.query_tokens.detach().float().numpy()},
        below(model, "qformer.embedding_norm"),
        backward=True,
    )


def layer_case(model: nn.Cell, i: int, verb: str, inputs: dict[str, np.ndarray]) -> Case:
    """One Q-Former layer under one verb's mask."""
    name = f"{verb}.layers.{i}"
    return Case(
        name,
        partial(their_layer, i=i, verb=verb),
        ours_of(name),
        inputs,
        below(model, f"qformer.encoder.layers.{i}."),
        backward=True,
    )


def their_layer(twin: ReferenceModel, x, i: int, verb: str, ids=None, image=None, key=None, value=None):
    """(B, L, D) and, where the verb hands them on, the keys and values."""
    queries = twin.config.queries if verb in ("see", "match") else 0
    bias = None
    if verb == "caption":
        bias = caption_bias(not_pad(ids, None, twin.config.pad), key.shape[2], x.dtype)
    elif ids is not None:
        mask = torch.nn.functional.pad(not_pad(ids, None, twin.config.pad), (queries, 0), value=1)
        bias = padding_bias(mask, x.dtype)
    cache = None if key is None else (key, value)
    x, own = twin.Qformer.bert.encoder["layer"][i](x, bias, image, cache, queries)
    return (x, *own) if verb == "see" else x


def verb_cases(model: nn.Cell, image_BPW: np.ndarray, ids: np.ndarray) -> Iterator[Case]:
    """The four verbs from their own inputs, all layers, with the gradient by the queries where they take
    part."""
    queries, both = below(model, "qformer.query_tokens"), {"image": image_BPW, "ids": ids}
    yield Case(
        "see",
        lambda twin, image: twin.see(image)[0],
        ours_of("see"),
        {"image": image_BPW},
        queries,
        backward=True,
    )
    yield Case(
        "read",
        lambda twin, ids: twin.read(ids),
        ours_of("read"),
        {"ids": ids},
        below(model, "qformer.embedding_norm"),
        backward=True,
    )
    yield Case(
        "match",
        lambda twin, image, ids: twin.match(ids, image),
        ours_of("match"),
        both,
        queries,
        backward=True,
    )
    yield Case(
        "caption",
        lambda twin, image, ids: twin.Qformer.logits(twin.caption(ids, twin.see(image)[1])[0]),
        ours_of("caption"),
        both,
        queries,
        backward=True,
    )


# ---------------------------------------------------------------------------------------------------- the hea
def head_cases(
    model: nn.Cell, image_BPW: np.ndarray, ids: np.ndarray, out: dict[str, np.ndarray]
) -> Iterator[Case]:
    """What makes features, match logits and words of the Q-Former's output."""
    yield Case(
        "image_feats",
        lambda twin, x: twin.image_feats(x),
        ours_of("image_feats"),
        {"x": out["see"]},
        below(model, "vision_proj."),
        backward=True,
    )
    yield Case(
        "text_feats",
        lambda twin, x: twin.text_feats(x),
        ours_of("text_feats"),
        {"x": out["read"]},
        below(model, "text_proj."),
        backward=True,
    )
    yield Case(
        "itm_logits",
        lambda twin, image, ids: twin.itm_logits(ids, image),
        ours_of("itm_logits"),
        {"image": image_BPW, "ids": ids},
        below(model, "itm_head."),
        backward=True,
    )
    yield Case(
        "lm_head",
        lambda twin, x: twin.Qformer.logits(x),
        ours_of("lm_head"),
        {"x": out["caption"]},
        below(model, "qformer.lm_head.", "qformer.embeddings.word."),
        backward=True,
    )
    yield Case(
        "next_token", their_next_token, ours_of("next_token"), {"cache": out["cache"], "ids": ids[:, 1:4]}
    )


def their_next_token(twin: ReferenceModel, cache, ids):
    """Logits after the last of a few tokens, fed one by one behind the cached queries."""
    cache = [tuple(pair) for pair in cache]
    for token in ids.split(1, dim=1):
        logits, cache = twin.step(token, cache)
    return logits


# ---------------------------------------------------------------------------------------------------- fused f
def fused_cases() -> Iterator[Case]:
    """The forms of GELU and LayerNorm that graph kernels fuse (mindblip2/models/kernels/cpu.py), as plain
    functions."""
    x, gamma, beta = (
        seeded_weights.normal(4, name, shape)
        for name, shape in (("x", (64, 279)), ("gamma", (279,)), ("beta", (279,)))
    )
    yield Case("fused.gelu", lambda twin, x: torch.nn.functional.gelu(x), ours_of("fused.gelu"), {"x": 3 * x})
    yield Case(
        "fused.layer_norm",
        lambda twin, x, gamma, beta: torch.nn.functional.layer_norm(x, x.shape[-1:], gamma, beta, 1e-6),
        ours_of("fused.layer_norm"),
        {"x": x, "gamma": gamma, "beta": beta},
        backward=True,
    )
