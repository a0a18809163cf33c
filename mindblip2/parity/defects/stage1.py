"""Deliberate defects of our side: every comparison must be able to fail
(mindblip2/parity/defects/mutations.py says which does).

A defect is a function from a model to context managers, each of which patches one thing while PyNative runs
and takes it back. Whoever renames a layer that is patched here renames it here too.
"""

import inspect
from functools import partial

import mindspore as ms
import numpy as np
from mindspore import ops

from mindblip2.models import blip2_qformer, layers, losses, qformer, vit
from mindblip2.models.kernels import cpu
from mindblip2.parity.defects.patches import changed, eps, exchanged, replaced


# ---------------------------------------------------------------------------------------------------- everywh
def tanh_gelu(model):
    yield replaced(layers.GELU, "construct", lambda self, x: ops.gelu(x, approximate="tanh"))


def half_precision(model):
    linear = layers.linear

    def half(x, weight, bias=None):
        narrow = [
            None if value is None else value.astype(ms.float16).astype(ms.float32)
            for value in (x, weight, bias)
        ]
        return linear(*narrow)

    yield replaced(layers, "linear", half)


def unscaled_attention(model):
    attend = layers.attend
    for module in (vit, qformer):
        yield replaced(module, "attend", lambda q, *rest, **how: attend(q * q.shape[-1] ** 0.5, *rest, **how))


def fused_series_short(model):
    yield replaced(cpu, "SERIES", cpu.SERIES[:-3])


def fused_eps(model):
    yield replaced(cpu, "layer_norm", forced(cpu.layer_norm, eps=1e-5))


# ---------------------------------------------------------------------------------------------------- ViT
def vit_eps(model):
    yield from eps(model.vit.blocks, ("norm1", "norm2"), 1e-5)


def ln_vision_eps(model):
    yield from eps([model], ("ln_vision",), 1e-6)


def patch_transposed(model):
    """A kernel of (rows, columns, colours) for pixels of (colours, rows, columns)."""
    side = model.vit.patch_embed.patch
    yield changed(
        model.vit.patch_embed.proj.weight,
        lambda w: w.reshape(-1, 3, side, side).transpose(0, 2, 3, 1).reshape(w.shape),
    )


def vit_positions(model):
    yield changed(model.vit.pos_embed, lambda table: np.roll(table, 1, axis=1))


def lost_zero(model):
    """[q, v, 0] for [q, 0, v]."""

    def construct(self, x_BPD):
        bias = ops.cat((self.q_bias, self.v_bias, ops.zeros_like(self.q_bias)))
        parts = [
            vit.split_heads(part, self.heads)
            for part in ops.split(vit.linear(x_BPD, self.qkv.weight, bias), x_BPD.shape[-1], -1)
        ]
        return self.proj(vit.merge_heads(vit.attend(*parts)))

    yield replaced(vit.ViTAttention, "construct", construct)


def feed_forward_transposed(model):
    """Up and down under each other's name and the other way round, as MindFormers' converter left them."""
    for block in model.vit.blocks:
        up, down = block.mlp.up.weight.asnumpy(), block.mlp.down.weight.asnumpy()
        yield changed(block.mlp.up.weight, lambda _, down=down: down.T)
        yield changed(block.mlp.down.weight, lambda _, up=up: up.T)


def permuted_heads(model):
    """The heads of q do not belong to those of k and v."""
    for block in model.vit.blocks:
        yield changed(block.attn.qkv.weight, partial(rolled_heads, heads=block.attn.heads, parts=3))
    for layer in model.qformer.encoder.layers:
        yield changed(layer.attention.query.weight, partial(rolled_heads, heads=layer.attention.heads))


def rolled_heads(weight, heads, parts=1):
    """The first of ``parts`` matrices in one with its heads moved on by one."""
    width = len(weight) // parts
    return np.concatenate([np.roll(weight[:width], width // heads, axis=0), weight[width:]])


# ---------------------------------------------------------------------------------------------------- Q-Forme
def qformer_eps(model, value=1e-5):
    yield from eps([model.qformer], ("embedding_norm",), value)
    yield from eps([model.qformer.lm_head], ("norm",), value)
    yield from eps(
        model.qformer.encoder.layers, ("attention_norm", "cross_norm", "query_norm", "text_norm"), value
    )


def pads_visible(model):
    yield replaced(qformer, "pad_mask", lambda ids, pad_id: ops.ones(ids.shape, ms.float32))


def mask_without_factor(model):
    """What is hidden gets +1 where -10000 belongs."""
    for name in ("read_bias", "match_bias"):
        bias = getattr(qformer, name)
        yield replaced(qformer, name, lambda *given, bias=bias: bias(*given) / layers.MASKED)


def future_visible(model):
    yield replaced(
        qformer,
        "caption_bias",
        lambda mask, past: qformer.read_bias(ops.cat((ops.ones((mask.shape[0], past), ms.float32), mask), 1)),
    )


def queries_hidden(model):
    """Captions that do not see the queries."""
    bias = qformer.caption_bias
    yield replaced(
        qformer,
        "caption_bias",
        lambda mask, past: ops.cat(
            (bias(mask, past)[..., :past] + layers.MASKED, bias(mask, past)[..., past:]), -1
        ),
    )


def text_positions(model):
    construct = qformer.TextEmbedding.construct
    yield replaced(
        qformer.TextEmbedding, "construct", lambda self, ids, start=0: construct(self, ids, start + 1)
    )


def positions_restart(model):
    """Every new word of a caption at position 0."""
    construct = qformer.TextEmbedding.construct
    yield replaced(qformer.TextEmbedding, "construct", lambda self, ids, start=0: construct(self, ids, 0))


def query_norm_skipped(model):
    yield replaced(
        qformer.QFormer, "_queries", lambda self, batch: ops.tile(self.query_tokens, (batch, 1, 1))
    )


def feed_forwards_exchanged(model):
    for layer in model.qformer.encoder.layers:
        for part in ("up", "down"):
            yield exchanged(getattr(layer.text_ffn, part).weight, getattr(layer.query_ffn, part).weight)


def memories_exchanged(model):
    """Cross-attention layers read each other's keys."""
    yield exchanged(model.qformer.memory.key[0].weight, model.qformer.memory.key[1].weight)


def lost_cross_attention(model):
    layer = model.qformer.encoder.layers[0]
    yield replaced(layer, "_see", lambda query, memory: layer.query_norm(query + layer.query_ffn(query)))


def cache_detached(model):
    """The caption loss does not train the queries."""
    see = qformer.QFormer.see

    def cut(self, memory):
        query, cache = see(self, memory)
        return query, tuple((ops.stop_gradient(key), ops.stop_gradient(value)) for key, value in cache)

    yield replaced(qformer.QFormer, "see", cut)


def untied_head(model):
    """A vocabulary of its own for the LM head."""
    construct = qformer.LMHead.construct
    yield replaced(
        qformer.LMHead, "construct", lambda self, x, table: construct(self, x, ops.stop_gradient(table))
    )


# ---------------------------------------------------------------------------------------------------- stage 1
def captions_from_cls(model):
    yield replaced(blip2_qformer.Blip2Qformer, "_decoder_input", lambda self, ids: ids)


def negatives_exchanged(model):
    three = blip2_qformer.Blip2Qformer._match_three
    yield replaced(
        blip2_qformer.Blip2Qformer,
        "_match_three",
        lambda self, *given: three(self, *given[:-1], given[-1][::-1]),
    )


def one_query_matches(model):
    yield replaced(
        blip2_qformer.Blip2Qformer,
        "match_logits",
        lambda self, ids, memory: self.itm_head(self.qformer.match(ids, memory)[0])[:, 0],
    )


def ln_vision_frozen(model):
    """The cut behind the frozen ViT one cell too late."""
    memory, stage1 = qformer.CrossAttentionKV.construct, blip2_qformer.Blip2Qformer.stage1

    def cut(self, *inputs):
        with replaced(
            qformer.CrossAttentionKV,
            "construct",
            lambda self, image_BPW: memory(self, ops.stop_gradient(image_BPW)),
        ):
            return stage1(self, *inputs)

    yield replaced(blip2_qformer.Blip2Qformer, "stage1", cut)


# ---------------------------------------------------------------------------------------------------- losses
def forced(function, **arguments):
    """``function`` with some arguments whatever the caller says."""

    def call(*args, **kwargs):
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.arguments.update(arguments)
        return function(*bound.args, **bound.kwargs)

    return call


def gather_learns(model):
    yield replaced(losses, "itc", forced(losses.itc, gather_with_grad=True))


def gather_never_learns(model):
    yield replaced(losses, "itc", forced(losses.itc, gather_with_grad=False))


def no_smoothing(model):
    yield replaced(losses, "itc", forced(losses.itc, smoothing=0.0))
    yield replaced(losses, "lm", forced(losses.lm, smoothing=0.0))


def ids_ignored(model):
    yield replaced(losses, "same_picture", forced(losses.same_picture, image_id_B=None))


def half_features(model):
    """Features and temperature in float16 before they meet."""

    def half(x):
        return x.astype(ms.float16).astype(ms.float32)

    itc = losses.itc
    yield replaced(
        losses,
        "itc",
        lambda image, text, temp, *rest, **more: itc(half(image), half(text), half(temp), *rest, **more),
    )


def first_query_classifies(model):
    probabilities = blip2_qformer.Blip2Classifier.probabilities
    yield replaced(
        blip2_qformer.Blip2Classifier,
        "probabilities",
        lambda self, image, label: probabilities(self, image[:, :1], label),
    )


def mean_over_queries(model):
    yield replaced(losses, "similarity", lambda image, text: ops.matmul(image, text.T).mean(1))


def not_normalised(model):
    yield replaced(losses, "normalise", lambda x: x)


def temp_multiplies(model):
    itc = losses.itc
    yield replaced(
        losses, "itc", lambda image, text, temp, *rest, **more: itc(image, text, 1 / temp, *rest, **more)
    )


def itm_classes_exchanged(model):
    itm = losses.itm
    yield replaced(losses, "itm", lambda logits: itm(logits[:, ::-1]))


def smoothing_over_pads(model):
    """MindFormers' label smoothing: its uniform part is averaged over all positions, pads included."""

    def lm(logits, ids, pad_id, smoothing=0.1):
        log_probs = ops.log_softmax(logits[:, :-1].reshape(-1, logits.shape[-1]), -1)
        return (
            forced(right, smoothing=0.0)(logits, ids, pad_id) * (1 - smoothing) - smoothing * log_probs.mean()
        )

    right = losses.lm
    yield replaced(losses, "lm", lm)


def not_shifted(model):
    """Each position predicts its own token."""
    lm = losses.lm
    yield replaced(losses, "lm", lambda logits, *rest: lm(ops.cat((logits[:, 1:], logits[:, :1]), 1), *rest))


def pads_predicted(model):
    """Padding counts as words."""
    yield replaced(losses, "lm", forced(losses.lm, pad_id=-1))


def own_pair_drawn(model):
    """A sample's own picture may be its negative."""
    draw = losses.hard_negatives
    yield replaced(losses, "hard_negatives", lambda sim, same, noise: draw(sim, ops.zeros_like(same), noise))
