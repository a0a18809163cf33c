"""What every tower is made of.  Weights are (out, in), as torch's and as the fast product on CPU wants them.

B batch · T positions of the query side · S positions of the key side · D width · H heads · K head width · F
feed-forward width
"""

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, One, Zero, initializer

from mindblip2 import device
from mindblip2.distributed import comm
from mindblip2.distributed.sharding import Split, is_split
from mindblip2.models.kernels import ascend, cpu

# ops.matmul would copy a weight for every row of the batch before a batched product; these do not.
PRODUCT = ops.MatMul(transpose_b=True)
SCORES = ops.BatchMatMul(transpose_b=True)
WEIGHTED = ops.BatchMatMul()
ADD_BIAS = ops.BiasAdd()

LARGE = 2_000_000  # weights of a layer whose kernels take longer than the switch to another thread
MASKED = -10000.0  # LAVIS adds (1 - mask) * -10000; not -inf, so a row with nothing to see stays finite


def dtype_of(name):
    """MindSpore's dtype for a configuration's string."""
    return {"float32": ms.float32, "float16": ms.float16, "bfloat16": ms.bfloat16}[name]


def local_heads(count):
    """How many of ``count`` heads, or channels of all heads, this card computes."""
    return count // comm.mesh.model


def parameter(initial, shape, name, param_dtype=ms.float32, split=None):
    """A Parameter of this name, with ``split`` only this card's piece of it: the piece of what one card would
    begin with."""
    cards, rank = comm.mesh.model, comm.mesh.model_rank
    if cards == 1 or split is None:
        made = Parameter(initializer(initial, shape, param_dtype), name=name)
    elif not device.draws_values():  # they will be loaded
        made = Parameter(initializer(Zero(), split.shape(shape, cards), param_dtype), name=name)
    else:
        whole = initializer(initial, shape, ms.float32).init_data().asnumpy()
        made = Parameter(Tensor(split.cut(whole, cards, rank)).astype(param_dtype), name=name)
    made.division = split
    return made


def gather_vocabulary(logits, vocab):
    """Logits (N, V) of all words, from those of this card's piece of the vocabulary (N, V / cards)."""
    if comm.mesh.model == 1:
        return logits
    return comm.all_gather_model(logits).swapaxes(0, 1).reshape(logits.shape[0], -1)[:, :vocab]


class GELU(nn.Cell):
    """x · Φ(x) with the exact Gaussian integral (erf), as torch's default; ``nn.GELU()`` is the tanh
    approximation."""

    def __init__(self):
        super().__init__()
        self.fused, self.ascend = device.fuses(), device.ascend()

    def construct(self, x):
        if self.ascend:
            return ascend.gelu(x)
        return cpu.gelu(x) if self.fused else ops.gelu(x, approximate="none")


def attend(query_BHTK, key_BHSK, value_BHSK, bias=None, dropout=None, flash=False, shifts=False):
    """softmax(q kᵀ / √K + bias) v → (B, H, T, K); the softmax is in float32.  ``bias`` broadcasts to (B, H,
    T, S).

    ``flash``: in one kernel, where nothing is dropped: what is dropped stays the draw of ``dropout``.
    ``shifts``: the bias does more than hide keys."""
    if flash and (dropout is None or not dropout.drops()):
        return ascend.attend(query_BHTK, key_BHSK, value_BHSK, bias, shifts)
    width = query_BHTK.shape[-1]
    scores_BHTS = SCORES(query_BHTK * width**-0.5, key_BHSK).astype(ms.float32)
    if bias is not None:
        scores_BHTS = scores_BHTS + bias
    weights_BHTS = ops.softmax(scores_BHTS, -1)
    if dropout is not None:
        weights_BHTS = dropout(weights_BHTS)
    return WEIGHTED(weights_BHTS.astype(value_BHSK.dtype), value_BHSK)


def linear(x, weight, bias=None):
    """x Wᵀ + b over the last axis: (…, in), (out, in), (out,) → (…, out), as one plain product."""
    flat = PRODUCT(x.reshape(-1, x.shape[-1]), weight)
    flat = flat if bias is None else ADD_BIAS(flat, bias.astype(flat.dtype))
    return flat.reshape(x.shape[:-1] + (weight.shape[0],))


def split_heads(x_BTD, heads):
    """(B, T, D) → (B, H, T, K)."""
    batch, length, width = x_BTD.shape
    return x_BTD.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


def merge_heads(x_BHTK):
    """(B, H, T, K) → (B, T, D)."""
    batch, heads, length, width = x_BHTK.shape
    return x_BHTK.swapaxes(1, 2).reshape(batch, length, heads * width)


def force_async_runtime(x, async_flag):
    """x, in a graph that runs on threads of its own.  On a CPU MindSpore runs a graph of up to a hundred
    kernels on the calling thread, which spins while a kernel's threads work: with two processors a large
    layer takes 1.4 times as long (docs/internals/mindspore_notes.md).  A graph with a branch does not run so.
    ``async_flag``: :func:`async_runtime_flag`.  No input of such a graph may be a view of another tensor:
    MindSpore would read it from its first number on."""
    if async_flag is not None:
        if async_flag:
            x = -x
    return x


def async_runtime_flag(cell):
    """Tensor(False) where :func:`threaded` helps: for large weights on a CPU in graph mode; None
    elsewhere."""
    on_cpu = device.target() == "CPU" and ms.get_context("mode") == ms.GRAPH_MODE
    large = on_cpu and sum(weight.size for weight in cell.get_parameters()) > LARGE
    return Tensor(False) if large else None


class SharedLayer(nn.Cell):
    """A layer without weights of its own that takes those of all layers of a stack in turn, and is compiled
    once for all.  Called from outside of a graph."""

    def __init__(self, make):
        super().__init__(auto_prefix=False)
        with device.no_init():
            self.layer = make().set_train(False)
        # in a tuple: an argument of the graph, not a constant
        self.async_flag = (async_runtime_flag(self.layer),)

    def construct(self, async_flag, x, *rest):
        return self.layer(force_async_runtime(x, async_flag), *rest)

    def of(self, layer, x, *rest):
        """What ``layer`` makes of x; its weights are not copied."""
        for place, weight in zip(self.layer.get_parameters(), layer.get_parameters(), strict=True):
            place.set_data(weight)
        return self(*self.async_flag, x.contiguous(), *rest)


class Linear(nn.Cell):
    """x Wᵀ + b with W (out, in), computed in ``dtype``: here, and in Embedding, weights are split over the
    cards of a model group.

    ``split``: "outputs", each card makes its share of the outputs from an x that has gone through
    ``comm.copy_to_tensor_parallel``; "inputs", each reads its share of the inputs, and the results are
    summed; None, every card does all.  ``parts``: see :class:`Split`.

    ``bias=False``: without one (the ViT's qkv makes its own).  A bias that is an argument, perhaps None,
    would keep the cell and its graph for ever once compiled (docs/internals/mindspore_notes.md).
    ``std``: of the initial weights; None: 1 / √inputs.  ``param_dtype``: of the weights, where it is not
    float32 (a frozen language model)."""

    def __init__(
        self,
        inputs,
        outputs,
        dtype="float32",
        bias=True,
        std=0.02,
        param_dtype="float32",
        split=None,
        parts=1,
    ):
        super().__init__()
        self.dtype, self.sums = dtype_of(dtype), split == "inputs"
        param_dtype, rows = dtype_of(param_dtype), Split(0, outputs, parts) if split == "outputs" else None
        cut = Split(1, inputs) if split == "inputs" else rows
        self.weight = parameter(Normal(std or inputs**-0.5), (outputs, inputs), "weight", param_dtype, cut)
        self.bias = parameter(Zero(), (outputs,), "bias", param_dtype, rows) if bias else None

    def construct(self, x):
        if self.sums and comm.mesh.model > 1:
            x = comm.reduce_from_tensor_parallel(linear(x.astype(self.dtype), self.weight.astype(self.dtype)))
            return x if self.bias is None else x + self.bias.astype(self.dtype)
        return linear(x.astype(self.dtype), self.weight.astype(self.dtype), self.bias)


class Normalise(nn.Cell):
    """MindSpore's LayerNorm of float32 x (…, D) with gamma and beta (D,) → (normalised, mean, variance)."""

    def __init__(self, eps):
        super().__init__()
        self.primitive, self.eps = ops.LayerNorm(-1, -1, eps), eps

    def construct(self, x, gamma, beta):
        return self.primitive(x, gamma, beta)


class CpuNormalise(Normalise):
    """The same with a gradient made of sums and products: MindSpore's own runs on one core."""

    def bprop(self, x, gamma, beta, out, gradients):
        """Gradients of x, gamma and beta."""
        (_, mean, variance), gradient = out, gradients[0]
        width, scale = x.shape[-1], ops.rsqrt(variance + self.eps)
        unit = (x - mean) * scale
        wanted = gradient * gamma
        level = ops.ReduceSum(True)(wanted, -1) * (1.0 / width)
        tilt = ops.ReduceSum(True)(wanted * unit, -1) * (1.0 / width)
        return (
            (wanted - level - unit * tilt) * scale,
            (gradient * unit).reshape(-1, width).sum(0),
            gradient.reshape(-1, width).sum(0),
        )


class LayerNorm(nn.Cell):
    """Layer normalisation over the last axis, computed in float32 and handed on in the dtype of the input."""

    def __init__(self, width, eps):
        super().__init__()
        self.gamma = Parameter(initializer(One(), (width,)), name="gamma")
        self.beta = Parameter(initializer(Zero(), (width,)), name="beta")
        self.eps = eps
        self.normalise = (CpuNormalise if device.target() == "CPU" else Normalise)(eps)
        self.fused, self.ascend = device.fuses(), device.ascend()

    def construct(self, x):
        if self.ascend:
            return ascend.layer_norm(x.astype(ms.float32), self.gamma, self.beta, self.eps).astype(x.dtype)
        if self.fused:
            return cpu.layer_norm(x.astype(ms.float32), self.gamma, self.beta, self.eps).astype(x.dtype)
        return self.normalise(x.astype(ms.float32), self.gamma, self.beta)[0].astype(x.dtype)


class FeedForward(nn.Cell):
    """down(gelu(up(x))): (…, D) → (…, F) → (…, D)."""

    def __init__(self, width, hidden, dtype="float32", std=0.02):
        super().__init__()
        self.up = Linear(width, hidden, dtype, std=std, split="outputs")
        self.gelu = GELU()
        self.down = Linear(hidden, width, dtype, std=std, split="inputs")

    def construct(self, x):
        return self.down(self.gelu(self.up(comm.copy_to_tensor_parallel(x))))


class Embedding(nn.Cell):
    """Rows of a table: ids (…) int32 → (…, D).  A ``split`` one is a vocabulary, of which each card looks up
    its own words."""

    def __init__(self, rows, width, std=0.02, param_dtype="float32", split=False):
        super().__init__()
        split = Split(0, rows) if split else None
        self.embedding_table = parameter(
            Normal(std or 0.02), (rows, width), "embedding_table", dtype_of(param_dtype), split
        )
        self.split = is_split(self.embedding_table, comm.mesh.model)
        self.start = comm.mesh.model_rank * self.embedding_table.shape[0]

    def construct(self, ids):
        if not self.split:
            return ops.gather(self.embedding_table, ids, 0)
        own = ids - self.start
        is_own = ops.logical_and(own >= 0, own < self.embedding_table.shape[0])
        found = ops.gather(self.embedding_table, own * is_own.astype(ms.int32), 0)
        return comm.reduce_from_tensor_parallel(found * is_own.astype(found.dtype)[..., None])
