"""The steps that an Ascend NPU computes in one kernel, with the numbers of the composed forms; no other
device has these operators.

Nothing here has run on an NPU: docs/ascend.md says what has been checked instead.

B batch · H heads · T positions of the query side · S positions of the key side · K head width · D width ·
other axes are free
"""

import mindspore as ms
from mindspore import mint, ops

# the kernel of attention reads heads whose width is a multiple of this: ViT-g's 88 becomes 96
BLOCK = 16
HIDDEN = -5000.0  # a bias below half of layers.MASKED hides a key; ALiBi of 4096 positions stays above


def attend(query_BHTK, key_BHSK, value_BHSK, bias=None, shifts=False):
    """``layers.attend`` of float16 or bfloat16 without the scores (B, H, T, S) in memory; the softmax is in
    float32 there too.

    ``bias`` only hides keys, and broadcasts to (B, 1, T, S); with ``shifts`` it also adds to the scores, and
    is (B, H, T, S)."""
    batch, heads, length, width = query_BHTK.shape
    scale, shift_BHTS, hidden = width**-0.5, None, None
    if bias is not None:
        hidden = hidden_keys(bias, (batch, heads if shifts else 1, length, key_BHSK.shape[2]))
    if shifts:
        # MindSpore documents scale · q kᵀ + shift and scale · (q kᵀ + shift): with a scale of 1 they are the
        # same.
        query_BHTK, scale = query_BHTK * scale, 1.0
        # In half precision a shift of -x is off by x / 2⁹ at most, and the key's weight is e⁻ˣ of what it
        # were: at its rounding.
        shift_BHTS = ops.where(hidden, ops.zeros_like(bias), bias).astype(query_BHTK.dtype)
    context_BHTK = ops.flash_attention_score(
        widened(query_BHTK),
        widened(key_BHSK),
        widened(value_BHSK),
        heads,
        real_shift=shift_BHTS,
        attn_mask=hidden,
        scalar_value=scale,
        input_layout="BNSD",
    )
    return (
        context_BHTK if width % BLOCK == 0 else ops.split(context_BHTK, [width, BLOCK - width % BLOCK], -1)[0]
    )


def hidden_keys(bias, shape):
    """A bias as the mask that the kernel wants, True where a key is not seen, of the whole ``shape``.

    A row that sees nothing (of padding) sees everything, as it does when the softmax is composed: else its
    numbers could be NaN, and NaN times a weight of 0 is NaN in the rows that look at it."""
    hidden = bias < HIDDEN
    hidden = ops.logical_and(hidden, ops.logical_not(ops.ReduceAll(True)(hidden, -1)))
    return ops.broadcast_to(hidden, shape)


def widened(x_BHTK):
    """Zeros to the next multiple of BLOCK channels: they add nothing to any product, and the scale stays that
    of the true width."""
    rest = -x_BHTK.shape[-1] % BLOCK
    return (
        x_BHTK if rest == 0 else ops.cat((x_BHTK, ops.zeros(x_BHTK.shape[:-1] + (rest,), x_BHTK.dtype)), -1)
    )


def rms_norm(x, gamma_D, eps):
    """``llama.RMSNorm``: float32 inside."""
    return ops.rms_norm(x.astype(ms.float32), gamma_D, eps)[0].astype(x.dtype)


def apply_rotary(x_BHTK, cos, sin):
    """``decoder.apply_rotary``: (cos, sin), (B, 1, T, K) float32 each, for both channels of a pair; the
    kernel makes the first one's sine negative.  float32 inside, since a sine in bfloat16 has two decimals."""
    return ops.rotary_position_embedding(x_BHTK.astype(ms.float32), cos, sin, 0).astype(x_BHTK.dtype)


def gelu(x):
    """The exact GELU.  ``ops.gelu`` composes it of five operators, each of which would round to half
    precision."""
    return mint.nn.functional.gelu(x, approximate="none")


def layer_norm(x, gamma_D, beta_D, eps):
    """Layer normalisation of float32 x over the last axis."""
    return mint.nn.functional.layer_norm(x, gamma_D.shape, gamma_D, beta_D, eps)
