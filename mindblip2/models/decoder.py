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
    attend,
    dtype_of,
    force_async_runtime,
    linear,
    local_heads,
    merge_heads,
    split_heads,
    threaded,
    whole_vocabulary,
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
    """Causal self-attention; a head of keys and values serves H / J heads of queries without a copy.

    ``turn`` is what the model does to queries and keys for their positions, or None; ``bias`` broadcasts to
    (B, J, G · T, S), and with ``shifts`` it does more than hide keys.
    With ``past``, (key, value) of (N, J, S, K) each, x is one token, whose key and value go into ``slot``."""

    def __init__(self, config, dtype, bias, held, shifts=False):
        super().__init__()
        self.heads, self.kv_heads = local_heads(config.num_heads), local_heads(config.kv_heads)
        self.flash, self.shifts, self.ascend = device.flash(dtype), shifts, device.ascend()
        inner = config.hidden_size // config.num_heads * config.kv_heads
        sizes = {"bias": bias, "std": config.initializer_range, "held": held}
        self.query = Linear(config.hidden_size, config.hidden_size, dtype, **sizes, split="outputs")
        self.key = Linear(config.hidden_size, inner, dtype, **sizes, split="outputs")
        self.value = Linear(config.hidden_size, inner, dtype, **sizes, split="outputs")
        self.output = Linear(config.hidden_size, config.hidden_size, dtype, **sizes, split="inputs")

    def construct(self, x_BTD, bias, turn=None, past=None, slot=None):
        x_BTD = comm.copy_to_tensor_parallel(x_BTD)
        query_BHTK = self._turned(split_heads(self.query(x_BTD), self.heads), turn)
        key_BJTK = self._turned(split_heads(self.key(x_BTD), self.kv_heads), turn)
        value_BJTK = split_heads(self.value(x_BTD), self.kv_heads)
        if past is not None:
            key_BJTK, value_BJTK = written(past[0], key_BJTK, slot), written(past[1], value_BJTK, slot)
        batch, _, length, width = query_BHTK.shape
        context = attend(
            query_BHTK.reshape(batch, self.kv_heads, -1, width),
            key_BJTK,
            value_BJTK,
            bias,
            flash=self.flash,
            shifts=self.shifts,
        )
        return self.output(merge_heads(context.reshape(batch, self.heads, length, width))), (
            key_BJTK,
            value_BJTK,
        )

    def _turned(self, x_BHTK, turn):
        return ascend.rotated(x_BHTK, *turn) if self.ascend and turn is not None else rotated(x_BHTK, turn)


def rotated(x_BHTK, turn):
    """Rotary positions: channel k and channel k + K / 2 are turned as a pair by the angle whose (cos, ±sin),
    (B, 1, T, K) float32 each, are given, minus for the first of a pair.  That is the order of Hugging Face's
    weights; Meta's have the pairs side by side."""
    if turn is None:
        return x_BHTK
    cos, sin = turn
    wide = x_BHTK.astype(ms.float32)
    left, right = ops.split(wide, x_BHTK.shape[-1] // 2, -1)
    return (wide * cos + ops.cat((right, left), -1) * sin).astype(x_BHTK.dtype)


def written(buffer_NJSK, own_NJ1K, slot):
    """The buffer with one slot replaced.  A scatter is the cheapest way here: one copy, where ``where`` takes
    three."""
    return ops.tensor_scatter_elements(buffer_NJSK, ops.zeros(own_NJ1K.shape, ms.int32) + slot, own_NJ1K, 2)


class Layer(nn.Cell):
    """x + attention(norm1(x)), then x + ffn(norm2(x)); also returns the keys and values."""

    def __init__(self, norm1, attention, norm2, ffn):
        super().__init__()
        self.norm1, self.attention, self.norm2, self.ffn = norm1, attention, norm2, ffn

    def construct(self, x_BTD, bias, turn=None, past=None, slot=None):
        context_BTD, cache = self.attention(self.norm1(x_BTD), bias, turn, past, slot)
        x_BTD = x_BTD + context_BTD
        return x_BTD + self.ffn(self.norm2(x_BTD)), cache


class LanguageModel(nn.Cell):
    """The stack and its five doors: ``embed``, the call itself, ``head``, ``prefill``, ``decode``.

    A model says what differs: ``make_layer``, ``placed`` (positions that are added to the input), ``turn``
    (positions that queries and keys are turned by), ``distance`` (positions that are a bias of the scores),
    ``head_weight`` and ``head_scale``.  Called with embeddings (B, T, D) and a mask (B, T) it gives what the
    final norm gives, (B, T, D).  ``dtype`` is that of the products, ``held`` that of the weights: a frozen
    model may hold them as it computes with them."""

    def __init__(self, config, dtype, held, norm):
        super().__init__()
        self.dtype = dtype_of(dtype)
        self.groups, self.vocab = config.num_heads // config.kv_heads, config.vocab_size
        self.word = Embedding(
            config.vocab_size, config.hidden_size, config.initializer_range, held, split=True
        )
        self.layers = nn.CellList([self.make_layer(config, dtype, held) for _ in range(config.num_layers)])
        self.norm = norm
        # of prefill and decode; in a dict: they are no children
        self.arguments, self._graphs = (config, dtype, held), {}

    def embed(self, ids):
        """Word embeddings of ids (…) int32 → (…, D), without positions."""
        return self.word(ids).astype(self.dtype)

    def construct(self, x_BTD, mask_BT):
        x_BTD, bias, turn = self.begin(x_BTD, mask_BT)
        for layer in self.layers:
            x_BTD = layer(x_BTD, bias, turn)[0]
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
        bias = self._grouped(causal_bias(mask_BT) + self.distance(position_BT, position_BT))
        return self.placed(x_BTD.astype(self.dtype), position_BT), bias, self.turn(position_BT)

    def begin_step(self, token_N, mask_NS, slot):
        """Of one token behind what is in the buffers: the mask with the token, and the same."""
        mask_NS = ops.maximum(mask_NS, (ops.arange(mask_NS.shape[1]) == slot).astype(ms.float32))
        position_NS = positions(mask_NS)
        position_N1 = ops.split(position_NS, [mask_NS.shape[1] - 1, 1], 1)[1]
        bias = self._grouped(
            ((1.0 - mask_NS) * MASKED).reshape(-1, 1, 1, mask_NS.shape[1])
            + self.distance(position_N1, position_NS)
        )
        return (
            mask_NS,
            self.placed(self.embed(token_N.reshape(-1, 1)), position_N1),
            bias,
            self.turn(position_N1),
        )

    def logits(self, hidden, scale):
        """Logits (…, V) float32; ``scale`` is the ``head_scale``."""
        hidden = comm.copy_to_tensor_parallel(hidden)
        return linear(hidden, self.head_weight().astype(hidden.dtype)).astype(ms.float32) * scale

    def placed(self, x_BTD, position_BT):
        return x_BTD

    def turn(self, position_BT):
        return None

    def distance(self, query_BT, key_BS):
        return 0.0

    def head_scale(self):
        """What the logits (…, V) are multiplied by; made once per prompt."""
        return 1.0

    def _through(self, x_BTD, bias, turn, past=None, slot=None):
        """All layers, called from outside of a graph.  In graph mode on a CPU one layer is compiled and takes
        the weights of all in turn, which costs nothing; 32 layers in one graph would be compiled for half a
        minute, for every shape."""
        frame = (
            self._graph(_frame)
            if device.target() == "CPU" and ms.get_context("mode") == ms.GRAPH_MODE
            else None
        )
        turn, caches = None if turn is None else ms.mutable(turn), ()
        for i, layer in enumerate(self.layers):
            rest = bias, turn, None if past is None else ms.mutable(past[i]), slot
            x_BTD, cache = layer(x_BTD, *rest) if frame is None else frame.of(layer, x_BTD, *rest)
            caches += (cache,)
        return x_BTD, caches

    def _end(self, hidden_ND, scale):
        """Logits of the last places."""
        end = self._graph(_End)
        return end(hidden_ND.contiguous(), scale, *end.never)

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


def _frame(llm):
    return SharedLayer(lambda: llm.make_layer(*llm.arguments))


class _End(nn.Cell):
    def __init__(self, llm):
        super().__init__(auto_prefix=False)
        self.llm = llm
        self.never = (force_async_runtime(llm.word),)

    def construct(self, x_ND, scale, never):
        return whole_vocabulary(self.llm.logits(self.llm.norm(threaded(x_ND, never)), scale), self.llm.vocab)


class _Reorder(nn.Cell):
    """Rows of a layer's buffers in another order: only beam search pays for it."""

    def __init__(self, llm):
        super().__init__(auto_prefix=False)

    def construct(self, order_N, key, value):
        return ops.gather(key, order_N, 0), ops.gather(value, order_N, 0)
