"""What Llama and OPT have in common: pre-norm layers of causal self-attention, run whole or with the keys and
values kept.

A prompt is *prefilled* once, then one token after the other is *decoded* against buffers of fixed size, so
that a graph is compiled once for each number of rows and slots.  A mask says what is a token (1) and what
padding (0), on either side or between; positions count tokens only.

B prompts · N rows = prompts × beams · T positions · S slots · D width · V vocab
H heads · J heads of keys and values · G = (H / J) · K head width
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from mindblip2 import device
from mindblip2.distributed import comm
from mindblip2.models.kernels import ascend
from mindblip2.models.layers import (
    MASKED,
    Embedding,
    Linear,
    SharedLayer,
    async_runtime_flag,
    attend,
    dtype_of,
    force_async_runtime,
    gather_vocabulary,
    linear,
    local_heads,
    merge_heads,
    split_heads,
)


def positions(mask_BT):
    """How many tokens stand before each: (B, T) int32.  Padding gets the position of the token before it, or
    0."""
    return ops.maximum(ops.cumsum(mask_BT.astype(ms.float32), 1).astype(ms.int32) - 1, 0)


def causal_bias(mask_BT):
    """A token sees itself and the tokens before it: (B, 1, T, T).  2 of padding, then 2 tokens::

    . . . .      x seen   . MASKED
    . . . .
    . . x .
    . . x x
    """
    length = mask_BT.shape[1]
    seen_BTT = ops.tril(ops.ones((length, length), ms.float32))[None] * mask_BT.astype(ms.float32)[:, None, :]
    return ((1.0 - seen_BTT) * MASKED)[:, None]


class Attention(nn.Cell):
    """Causal self-attention with grouped queries: one head of keys and values serves H / J heads of queries,
    without a copy.

    ``rope_cache``: see :func:`apply_rotary`; None without rotary positions.  ``bias`` broadcasts to (B, J,
    G · T, S); ``shifts`` says that it also changes the scores of visible keys (ALiBi).
    ``past``: the KV cache of this layer, (key, value) of (N, J, S, K) each; x is then one token, whose key
    and value are written to ``slot``.  Returns the output and the layer's keys and values."""

    def __init__(self, config, dtype, bias, param_dtype, shifts=False):
        super().__init__()
        self.heads, self.kv_heads = local_heads(config.num_heads), local_heads(config.kv_heads)
        self.flash, self.shifts, self.ascend = device.flash(dtype), shifts, device.ascend()
        inner = config.hidden_size // config.num_heads * config.kv_heads
        sizes = {"bias": bias, "std": config.initializer_range, "param_dtype": param_dtype}
        self.query = Linear(config.hidden_size, config.hidden_size, dtype, **sizes, split="outputs")
        self.key = Linear(config.hidden_size, inner, dtype, **sizes, split="outputs")
        self.value = Linear(config.hidden_size, inner, dtype, **sizes, split="outputs")
        self.output = Linear(config.hidden_size, config.hidden_size, dtype, **sizes, split="inputs")

    def construct(self, x_BTD, bias, rope_cache=None, past=None, slot=None):
        x_BTD = comm.copy_to_tensor_parallel(x_BTD)
        query_BHTK = self._apply_rotary(split_heads(self.query(x_BTD), self.heads), rope_cache)
        key_BJTK = self._apply_rotary(split_heads(self.key(x_BTD), self.kv_heads), rope_cache)
        value_BJTK = split_heads(self.value(x_BTD), self.kv_heads)
        if past is not None:
            key_BJTK = update_kv_cache(past[0], key_BJTK, slot)
            value_BJTK = update_kv_cache(past[1], value_BJTK, slot)
        batch, _, length, width = query_BHTK.shape
        context = attend(
            query_BHTK.reshape(batch, self.kv_heads, -1, width),
            key_BJTK,
            value_BJTK,
            bias,
            flash=self.flash,
            shifts=self.shifts,
        )
        context = context.reshape(batch, self.heads, length, width)
        return self.output(merge_heads(context)), (key_BJTK, value_BJTK)

    def _apply_rotary(self, x_BHTK, rope_cache):
        if self.ascend and rope_cache is not None:
            return ascend.apply_rotary(x_BHTK, *rope_cache)
        return apply_rotary(x_BHTK, rope_cache)


def apply_rotary(x_BHTK, rope_cache):
    """Rotary position embedding: channels k and k + K / 2 are rotated as a pair.

    ``rope_cache``: (cos, ±sin), (B, 1, T, K) float32 each, with a minus for the first channel of a pair; None
    returns x as it is.  This is the channel order of Hugging Face's weights; in Meta's, the two channels of a
    pair are neighbours."""
    if rope_cache is None:
        return x_BHTK
    cos, sin = rope_cache
    wide = x_BHTK.astype(ms.float32)
    left, right = ops.split(wide, x_BHTK.shape[-1] // 2, -1)
    return (wide * cos + ops.cat((right, left), -1) * sin).astype(x_BHTK.dtype)


def update_kv_cache(buffer_NJSK, own_NJ1K, slot):
    """The cache (N, J, S, K) with one slot replaced by the new token's key or value (N, J, 1, K).

    A scatter is cheapest here: one copy, where ``ops.where`` takes three."""
    return ops.tensor_scatter_elements(buffer_NJSK, ops.zeros(own_NJ1K.shape, ms.int32) + slot, own_NJ1K, 2)


class Layer(nn.Cell):
    """x + attention(norm1(x)), then x + ffn(norm2(x)); also returns the keys and values."""

    def __init__(self, norm1, attention, norm2, ffn):
        super().__init__()
        self.norm1, self.attention, self.norm2, self.ffn = norm1, attention, norm2, ffn

    def construct(self, x_BTD, bias, rope_cache=None, past=None, slot=None):
        context_BTD, cache = self.attention(self.norm1(x_BTD), bias, rope_cache, past, slot)
        x_BTD = x_BTD + context_BTD
        return x_BTD + self.ffn(self.norm2(x_BTD)), cache


class LanguageModel(nn.Cell):
    """A decoder-only language model: ``embed``, the call itself, ``head``, ``prefill``, ``decode``.

    A subclass defines what differs: ``make_layer``, ``add_position_embeddings`` (learnt positions, added to
    the input), ``rope_cache`` (rotary positions, applied to queries and keys), ``alibi_bias`` (positions as
    a bias of the scores), ``head_weight`` and ``head_scale``.  The call takes embeddings (B, T, D) and a
    mask (B, T) and returns the output of the final norm (B, T, D).  ``dtype`` is that of the computation,
    ``param_dtype`` that of the weights: a frozen model may store them in the dtype it computes with."""

    def __init__(self, config, dtype, param_dtype, norm):
        super().__init__()
        self.dtype = dtype_of(dtype)
        self.groups, self.vocab = config.num_heads // config.kv_heads, config.vocab_size
        self.word = Embedding(
            config.vocab_size, config.hidden_size, config.initializer_range, param_dtype, split=True
        )
        self.layers = nn.CellList(
            [self.make_layer(config, dtype, param_dtype) for _ in range(config.num_layers)]
        )
        self.norm = norm
        # of prefill and decode; in a dict: they are no children
        self.arguments, self._graphs = (config, dtype, param_dtype), {}

    def embed(self, ids):
        """Word embeddings of ids (…) int32 → (…, D), without positions."""
        return self.word(ids).astype(self.dtype)

    def construct(self, x_BTD, mask_BT):
        x_BTD, bias, rope_cache = self.begin(x_BTD, mask_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, bias, rope_cache)[0]
        return self.norm(x_BTD)

    def head(self, hidden):
        """What the call gives (…, D) → logits (…, V) float32, on a model group of this card's words."""
        return self.logits(hidden, self.head_scale())

    def prefill(self, x_BTD, mask_BT, room):
        """Prompts as embeddings, padded on the left → logits (B, V) float32 of their next token, and the
        state that ``decode`` goes on from, with room for so many tokens.  Called from outside of a graph."""
        hidden_BTD, caches = self._through(*self._graph(_Begin)(x_BTD, mask_BT))
        scale = self.head_scale()
        mask_BS = ops.cat((mask_BT.astype(ms.float32), ops.zeros((mask_BT.shape[0], room), ms.float32)), 1)
        buffers = tuple(
            tuple(ops.cat((x, ops.zeros((*x.shape[:2], room, x.shape[3]), x.dtype)), 2) for x in pair)
            for pair in caches
        )
        return self._end(hidden_BTD[:, -1], scale), (buffers, mask_BS, x_BTD.shape[1], scale)

    def decode(self, token_N, order_N, state):
        """One token per row, (N,) int → logits (N, V) float32 of the next, and the new state.  The rows of
        ``state`` are first put into the order ``order_N`` (N,) int, which may repeat some and leave out
        others.  Called from outside of a graph.  Raises ValueError where the room of ``prefill`` is used
        up."""
        token_N, order_N = (
            np.asarray(x.asnumpy() if isinstance(x, Tensor) else x, np.int32) for x in (token_N, order_N)
        )
        buffers, mask_NS, slot, scale = state
        if slot >= mask_NS.shape[1]:
            raise ValueError(f"all {mask_NS.shape[1]} slots of this state are used: prefill with more room")
        if not np.array_equal(order_N, np.arange(mask_NS.shape[0])):
            order, move = Tensor(order_N), self._graph(_Reorder)
            buffers, mask_NS = tuple(move(order, *pair) for pair in buffers), ops.gather(mask_NS, order, 0)
        place = Tensor(slot, ms.int32)
        mask_NS, *begun = self._graph(_Step)(Tensor(token_N), mask_NS, place)
        hidden_N1D, buffers = self._through(*begun, buffers, place)
        return self._end(hidden_N1D[:, 0], scale), (buffers, mask_NS, slot + 1, scale)

    def begin(self, x_BTD, mask_BT):
        """Of a whole text: the input of the first layer, and what every layer is told of the places, a bias
        and a turn."""
        position_BT = positions(mask_BT)
        bias = self._grouped(causal_bias(mask_BT) + self.alibi_bias(position_BT, position_BT))
        return (
            self.add_position_embeddings(x_BTD.astype(self.dtype), position_BT),
            bias,
            self.rope_cache(position_BT),
        )

    def begin_step(self, token_N, mask_NS, slot):
        """Of one token behind what is in the buffers: the mask with the token, and the same."""
        mask_NS = ops.maximum(mask_NS, (ops.arange(mask_NS.shape[1]) == slot).astype(ms.float32))
        position_NS = positions(mask_NS)
        position_N1 = ops.split(position_NS, [mask_NS.shape[1] - 1, 1], 1)[1]
        bias = self._grouped(
            ((1.0 - mask_NS) * MASKED).reshape(-1, 1, 1, mask_NS.shape[1])
            + self.alibi_bias(position_N1, position_NS)
        )
        return (
            mask_NS,
            self.add_position_embeddings(self.embed(token_N.reshape(-1, 1)), position_N1),
            bias,
            self.rope_cache(position_N1),
        )

    def logits(self, hidden, scale):
        """Logits (…, V) float32; ``scale`` is the ``head_scale``."""
        hidden = comm.copy_to_tensor_parallel(hidden)
        return linear(hidden, self.head_weight().astype(hidden.dtype)).astype(ms.float32) * scale

    def add_position_embeddings(self, x_BTD, position_BT):
        return x_BTD

    def rope_cache(self, position_BT):
        return None

    def alibi_bias(self, query_BT, key_BS):
        return 0.0

    def head_scale(self):
        """What the logits (…, V) are multiplied by; made once per prompt."""
        return 1.0

    def _through(self, x_BTD, bias, rope_cache, past=None, slot=None):
        """All layers, called from outside of a graph.  In graph mode on a CPU one layer is compiled and takes
        the weights of all in turn, which costs nothing; 32 layers in one graph would be compiled for half a
        minute, for every shape."""
        shared_layer = (
            self._graph(_make_shared_layer)
            if device.target() == "CPU" and ms.get_context("mode") == ms.GRAPH_MODE
            else None
        )
        rope_cache, caches = None if rope_cache is None else ms.mutable(rope_cache), ()
        for i, layer in enumerate(self.layers):
            rest = bias, rope_cache, None if past is None else ms.mutable(past[i]), slot
            x_BTD, cache = (
                layer(x_BTD, *rest) if shared_layer is None else shared_layer.of(layer, x_BTD, *rest)
            )
            caches += (cache,)
        return x_BTD, caches

    def _end(self, hidden_ND, scale):
        """Logits of the last places."""
        end = self._graph(_End)
        return end(hidden_ND.contiguous(), scale, *end.async_flag)

    def _graph(self, kind):
        """The one cell of its kind, made when it is first needed."""
        if kind not in self._graphs:
            self._graphs[kind] = kind(self)
        return self._graphs[kind]

    def _grouped(self, bias_BHTS):
        """(B, 1 or H, T, S) → (B, 1 or J, G · T, S), for queries of a group side by side."""
        batch, heads, length, slots = bias_BHTS.shape
        if self.groups == 1 or (heads == 1 and length == 1):
            return bias_BHTS
        return (
            ops.tile(bias_BHTS, (1, 1, self.groups, 1))
            if heads == 1
            else bias_BHTS.reshape(batch, -1, self.groups * length, slots)
        )


class _Begin(nn.Cell):
    def __init__(self, llm):
        super().__init__(auto_prefix=False)
        self.llm = llm

    def construct(self, x_BTD, mask_BT):
        return self.llm.begin(x_BTD, mask_BT)


class _Step(nn.Cell):
    def __init__(self, llm):
        super().__init__(auto_prefix=False)
        self.llm = llm

    def construct(self, token_N, mask_NS, slot):
        return self.llm.begin_step(token_N, mask_NS, slot)


def _make_shared_layer(llm):
    return SharedLayer(lambda: llm.make_layer(*llm.arguments))


class _End(nn.Cell):
    def __init__(self, llm):
        super().__init__(auto_prefix=False)
        self.llm = llm
        self.async_flag = (async_runtime_flag(llm.word),)

    def construct(self, x_ND, scale, async_flag):
        return gather_vocabulary(
            self.llm.logits(self.llm.norm(force_async_runtime(x_ND, async_flag)), scale), self.llm.vocab
        )


class _Reorder(nn.Cell):
    """Rows of a layer's buffers in another order: only beam search pays for it."""

    def __init__(self, llm):
        super().__init__(auto_prefix=False)

    def construct(self, order_N, key, value):
        return ops.gather(key, order_N, 0), ops.gather(value, order_N, 0)
