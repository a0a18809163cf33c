"""Deliberate defects of the language models, and which case catches which (see
mindblip2/parity/defects/stage1.py and mindblip2/parity/defects/mutations.py)."""

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from mindblip2.models import decoder, layers, llama, opt
from mindblip2.models.decoder import Attention, LanguageModel
from mindblip2.models.llama import Llama, RMSNorm
from mindblip2.parity.defects.mutations import Mutation
from mindblip2.parity.defects.patches import changed, exchanged, replaced
from mindblip2.parity.defects.preprocessing import converted_in_half, thirds_exchanged


# ---------------------------------------------------------------------------------------------------- both ki
def half_precision(model):
    linear = layers.linear

    def half(x, weight, bias=None):
        narrow = [
            None if value is None else value.astype(ms.float16).astype(ms.float32)
            for value in (x, weight, bias)
        ]
        return linear(*narrow)

    for module in (layers, decoder):
        yield replaced(module, "linear", half)


def words_off_by_one(model):
    yield changed(model.llm.word.embedding_table, lambda table: np.roll(table, 1, axis=0))


def norms(model):
    return [model.llm.norm, *(norm for layer in model.llm.layers for norm in (layer.norm1, layer.norm2))]


def other_eps(model):
    for norm in norms(model):
        yield replaced(norm, "eps", 1e-4)
        if not isinstance(norm, RMSNorm):
            yield replaced(norm, "normalise", ops.LayerNorm(-1, -1, 1e-4))


# ---------------------------------------------------------------------------------------------------- attenti
def unscaled(model):
    attend = decoder.attend
    yield replaced(decoder, "attend", lambda q, *rest, **how: attend(q * q.shape[-1] ** 0.5, *rest, **how))


def future_visible(model):
    def bias(mask_BT):
        hidden_BT = (1.0 - mask_BT.astype(ms.float32)) * decoder.MASKED
        return ops.tile(hidden_BT[:, None, None], (1, 1, mask_BT.shape[1], 1))

    yield replaced(decoder, "causal_bias", bias)


def padding_visible(model):
    bias = decoder.causal_bias
    yield replaced(decoder, "causal_bias", lambda mask_BT: bias(ops.ones_like(mask_BT)))


def padding_counted(model):
    yield replaced(decoder, "positions", lambda mask_BT: ops.arange(mask_BT.shape[1])[None].astype(ms.int32))


def heads_interleaved(model):
    """Query head h reads the keys of head h modulo J, not of h // G."""
    for layer in model.llm.layers:
        heads, kv_heads = layer.attention.heads, layer.attention.kv_heads
        order = np.arange(heads).reshape(heads // kv_heads, kv_heads).T.reshape(-1)
        yield changed(
            layer.attention.query.weight,
            lambda w, order=order: w.reshape(len(order), -1, w.shape[1])[order].reshape(w.shape),
        )


# ---------------------------------------------------------------------------------------------------- positio
def turned_with_neighbours(model):
    """Channels 2k and 2k + 1 as a pair, as in Meta's files."""

    def apply_rotary(x_BHTK, rope_cache):
        if rope_cache is None:
            return x_BHTK
        half = x_BHTK.shape[-1] // 2
        cos, sin = rope_cache[0][..., :half], rope_cache[1][..., half:]
        left, right = x_BHTK[..., 0::2], x_BHTK[..., 1::2]
        return ops.stack((left * cos - right * sin, right * cos + left * sin), -1).reshape(x_BHTK.shape)

    yield replaced(decoder, "apply_rotary", apply_rotary)


def turned_backwards(model):
    apply_rotary = decoder.apply_rotary
    yield replaced(
        decoder,
        "apply_rotary",
        lambda x, rope_cache: apply_rotary(x, rope_cache and (rope_cache[0], -rope_cache[1])),
    )


def next_turn_off_by_one(model):
    """Only a new token: shifting all changes nothing, since turns are relative."""
    rope_cache = Llama.rope_cache
    yield replaced(
        Llama,
        "rope_cache",
        lambda self, position_BT: rope_cache(self, position_BT + int(position_BT.shape[1] == 1)),
    )


def other_frequencies(**changes):
    def patches(model):
        config = model.llm.arguments[0].replace(**changes)
        width = config.hidden_size // config.num_heads
        yield replaced(
            model.llm,
            "frequencies",
            ms.Tensor(llama.frequencies(width, config.rope_theta, config.rope_scaling)),
        )

    return patches


def distance_rewarded(model):
    alibi_bias = Llama.alibi_bias
    yield replaced(Llama, "alibi_bias", lambda *args: -alibi_bias(*args))


def one_series_of_slopes(model):
    heads = len(model.llm.slopes)
    yield replaced(
        model.llm, "slopes", ms.Tensor(2.0 ** (-8.0 * np.arange(1, heads + 1) / heads), ms.float32)
    )


def no_offset(model):
    yield replaced(opt, "OFFSET", 0)


# ---------------------------------------------------------------------------------------------------- the res
def gate_and_up_exchanged(model):
    for layer in model.llm.layers:
        yield exchanged(layer.ffn.gate.weight, layer.ffn.up.weight)


def gelu(name):
    return lambda model: iter([replaced(ops, name, lambda x: ops.gelu(x, approximate="none"))])


def mean_subtracted(model):
    construct = RMSNorm.construct
    yield replaced(RMSNorm, "construct", lambda self, x: construct(self, x - x.mean(-1, keep_dims=True)))


def value_bias_lost(model):
    for layer in model.llm.layers:
        yield changed(layer.attention.value.bias, np.zeros_like)


def detached(model):
    begin = LanguageModel.begin
    yield replaced(
        LanguageModel, "begin", lambda self, x_BTD, mask_BT: begin(self, ops.stop_gradient(x_BTD), mask_BT)
    )


# ---------------------------------------------------------------------------------------------------- head an
def head_not_normalised(model):
    yield replaced(Llama, "head_scale", lambda self: 1.0)


def head_not_tied(model):
    weight = ms.Parameter(
        ms.Tensor(np.roll(model.llm.word.embedding_table.asnumpy(), 1, axis=0)), name="untied"
    )
    yield replaced(opt.OPT, "head_weight", lambda self: weight)


def written_a_slot_early(model):
    update_kv_cache = decoder.update_kv_cache
    yield replaced(
        decoder, "update_kv_cache", lambda buffer, own, slot: update_kv_cache(buffer, own, slot - 1)
    )


def buffers_all_visible(model):
    begin_step = LanguageModel.begin_step
    yield replaced(
        LanguageModel,
        "begin_step",
        lambda self, token, mask, slot: begin_step(
            self, token, ops.maximum(mask, (ops.arange(mask.shape[1]) < slot).astype(ms.float32)), slot
        ),
    )


def beams_not_reordered(model):
    yield replaced(decoder._Reorder, "construct", lambda self, order, key, value: (key, value))


def keys_not_turned(model):
    """Not those of a new token."""
    construct = Attention.construct

    def late(self, x, bias, rope_cache=None, past=None, slot=None):
        apply_rotary = decoder.apply_rotary
        keys = iter((False, True))
        rule = lambda y, rope_cache: y if past is not None and next(keys) else apply_rotary(y, rope_cache)  # noqa: E731
        with replaced(decoder, "apply_rotary", rule):
            return construct(self, x, bias, rope_cache, past, slot)

    yield replaced(Attention, "construct", late)


# ---------------------------------------------------------------------------------------------------- who cat
ATTENDS, WHOLE, CACHED = "layers.?.attention, layers.?", "hidden, logits", "decode, beams"
NORMS = "layers.?.norm1, layers.?.norm2, norm"
BOTH = ("llama", "opt")


def on(model: str, patches: Callable[[nn.Cell], object], caught: str, spared: str) -> tuple[str, Mutation]:
    """A defect of one model; patterns without its name."""
    return model, Mutation(
        patches, *(", ".join(f"{model} {one}" for one in some.split(", ")) for some in (caught, spared))
    )


def on_both(name: str, *mutation) -> dict:
    return {f"{name}, {model}": on(model, *mutation) for model in BOTH}


LANGUAGE_MUTATIONS: dict[str, tuple[str, Mutation]] = {
    **on_both(
        "products in half precision",
        half_precision,
        f"layers.?.ffn, head, {ATTENDS}, {WHOLE}, {CACHED}",
        f"embed, {NORMS}",
    ),
    **on_both("words off by one", words_off_by_one, f"embed, {CACHED}", f"{ATTENDS}, hidden"),
    **on_both("eps 1e-4", other_eps, f"{NORMS}, {WHOLE}", "layers.?.attention, layers.?.ffn, head"),
    "attention scores not scaled, llama3": on(
        "llama3", unscaled, f"{ATTENDS}, {WHOLE}, {CACHED}", f"layers.?.ffn, {NORMS}"
    ),
    "the future is visible": on(
        "llama", future_visible, f"{ATTENDS}, {WHOLE}, {CACHED}", "layers.?.ffn, head"
    ),
    "padding is visible": on(
        "llama3", padding_visible, f"{ATTENDS}, {WHOLE}, {CACHED}", "layers.?.ffn, head"
    ),
    "padding is counted, Llama": on(
        "llama", padding_counted, f"{ATTENDS}, {WHOLE}, {CACHED}", "layers.?.ffn, head"
    ),
    "padding is counted, OPT": on("opt", padding_counted, f"{WHOLE}, {CACHED}", f"{ATTENDS}, head"),
    "query heads of a group apart": on(
        "llama3", heads_interleaved, f"{ATTENDS}, {WHOLE}, {CACHED}", "layers.?.ffn, head"
    ),
    "rotary pairs side by side": on(
        "llama", turned_with_neighbours, f"{ATTENDS}, {WHOLE}, {CACHED}", "layers.?.ffn, head"
    ),
    "turned backwards": on("llama3", turned_backwards, f"{ATTENDS}, {WHOLE}, {CACHED}", "layers.?.ffn, head"),
    "a new token turned once more": on("llama", next_turn_off_by_one, CACHED, f"{ATTENDS}, {WHOLE}"),
    "keys of new tokens not turned": on("llama3", keys_not_turned, CACHED, f"{ATTENDS}, {WHOLE}"),
    "Llama-3's scaling ignored": on(
        "llama3", other_frequencies(rope_scaling=None), f"{ATTENDS}, {WHOLE}, {CACHED}", "layers.?.ffn"
    ),
    "theta of Llama-2": on(
        "llama3", other_frequencies(rope_theta=1e4), f"{ATTENDS}, {WHOLE}, {CACHED}", "layers.?.ffn"
    ),
    "ALiBi rewards distance": on(
        "baichuan_13b", distance_rewarded, f"{ATTENDS}, {WHOLE}, {CACHED}", "layers.?.ffn, head"
    ),
    "ALiBi slopes in one series": on(
        "baichuan_13b", one_series_of_slopes, f"{ATTENDS}, {WHOLE}, {CACHED}", "layers.?.ffn"
    ),
    "OPT's positions without offset": on("opt", no_offset, f"{WHOLE}, {CACHED}", f"{ATTENDS}, {NORMS}, head"),
    "gate and up exchanged": on(
        "llama", gate_and_up_exchanged, f"layers.?.ffn, layers.?, {WHOLE}", "layers.?.attention"
    ),
    "GELU for SiLU": on("llama", gelu("silu"), f"layers.?.ffn, layers.?, {WHOLE}", "layers.?.attention"),
    "GELU for ReLU": on("opt", gelu("relu"), f"layers.?.ffn, layers.?, {WHOLE}", "layers.?.attention"),
    "a mean subtracted": on(
        "llama", mean_subtracted, f"{NORMS}, layers.?, {WHOLE}", "layers.?.attention, layers.?.ffn"
    ),
    "bias of values lost": on("opt", value_bias_lost, f"{ATTENDS}, {WHOLE}, {CACHED}", "layers.?.ffn, head"),
    "no gradient to the input": on("llama", detached, WHOLE, f"{ATTENDS}, {CACHED}"),
    "head not normalised": on(
        "baichuan2_7b", head_not_normalised, f"head, logits, {CACHED}", f"{ATTENDS}, hidden"
    ),
    "head not tied": on("opt", head_not_tied, f"head, logits, {CACHED}", f"{ATTENDS}, hidden, embed"),
    "written a slot early": on("llama", written_a_slot_early, CACHED, f"{ATTENDS}, {WHOLE}"),
    "all of the buffer is visible": on("llama3", buffers_all_visible, CACHED, f"{ATTENDS}, {WHOLE}"),
    **on_both("converted in half precision", converted_in_half, "conversion", "embed, head"),
    "thirds of W_pack exchanged": on("baichuan2_7b", thirds_exchanged, "conversion", f"{ATTENDS}, hidden"),
    "beams not reordered": on("opt", beams_not_reordered, "beams", f"decode, {WHOLE}"),
}
