"""Llama and its relatives: RMS norms, rotary positions, gated feed-forwards; Baichuan-13B's linear biases,
Baichuan2's normalised head.

B batch · T positions · S positions of the keys · D width · H heads · F feed-forward width · V vocab
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import One, initializer

from mindblip2 import device
from mindblip2.distributed import comm
from mindblip2.models.decoder import Attention, LanguageModel, Layer
from mindblip2.models.kernels import ascend
from mindblip2.models.layers import SCORES, Linear, local_heads


class RMSNorm(nn.Cell):
    """x / √(mean(x²) + eps) · gamma over the last axis, computed in float32 and handed on in the dtype of the
    input."""

    def __init__(self, width, eps):
        super().__init__()
        self.gamma = Parameter(initializer(One(), (width,)), name="gamma")
        self.eps, self.ascend = eps, device.ascend()

    def construct(self, x):
        if self.ascend:
            return ascend.rms_norm(x, self.gamma, self.eps)
        wide = x.astype(ms.float32)
        mean = ops.ReduceSum(True)(wide * wide, -1) * (1.0 / x.shape[-1])
        return (wide * ops.rsqrt(mean + self.eps) * self.gamma).astype(x.dtype)


class SwiGLU(nn.Cell):
    """down(silu(gate(x)) · up(x)): (…, D) → (…, F) → (…, D)."""

    def __init__(self, width, hidden, dtype="float32", std=0.02, param_dtype="float32"):
        super().__init__()
        self.gate = Linear(
            width, hidden, dtype, bias=False, std=std, param_dtype=param_dtype, split="outputs"
        )
        self.up = Linear(width, hidden, dtype, bias=False, std=std, param_dtype=param_dtype, split="outputs")
        self.down = Linear(hidden, width, dtype, bias=False, std=std, param_dtype=param_dtype, split="inputs")

    def construct(self, x):
        x = comm.copy_to_tensor_parallel(x)
        return self.down(ops.silu(self.gate(x)) * self.up(x))


def frequencies(width, theta, scaling=None):
    """By what angle a pair of channels turns from one position to the next: (K / 2,) float32.

    ``scaling`` stretches the positions a model was trained on: "linear" all of them, "llama3" those of slow
    pairs, which did not turn once within the original context, and in between a mixture."""
    turns = (1.0 / theta ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))).astype(np.float32)
    if scaling is None:
        return turns
    factor = np.float32(scaling["factor"])
    if scaling.get("rope_type", scaling.get("type")) == "linear":
        return turns / factor
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    rounds = scaling["original_max_position_embeddings"] * turns / np.float32(2 * np.pi)
    fast = np.clip((rounds - low) / (high - low), 0.0, 1.0)
    return ((1 - fast) * turns / factor + fast * turns).astype(np.float32)


def slopes(heads):
    """ALiBi's slope of each head (H,): a geometric series that ends at 2⁻⁸; for other numbers of heads than
    powers of two, every second of the next longer series fills up."""
    whole = 2 ** int(math.log2(heads))
    series = [2.0 ** (-8.0 * (i + 1) / whole) for i in range(whole)]
    finer = [2.0 ** (-4.0 * (i + 1) / whole) for i in range(0, 2 * (heads - whole), 2)]
    return np.array(series + finer, np.float32)


class Llama(LanguageModel):
    """See :class:`LanguageModel`."""

    def __init__(self, config, dtype="float32", param_dtype="float32"):
        width = config.hidden_size
        super().__init__(config, dtype, param_dtype, RMSNorm(width, config.rms_norm_eps))
        self.lm_head = Linear(
            width,
            config.vocab_size,
            dtype,
            bias=False,
            std=config.initializer_range,
            param_dtype=param_dtype,
            split="outputs",
        )
        self.normalized_head = config.normalized_head
        self.rope, self.ascend = config.position_embedding == "rope", device.ascend()
        self.frequencies = (
            Tensor(frequencies(width // config.num_heads, config.rope_theta, config.rope_scaling))
            if self.rope
            else None
        )
        own = local_heads(config.num_heads) * comm.mesh.model_rank
        self.slopes = (
            None if self.rope else Tensor(slopes(config.num_heads)[own : own + local_heads(config.num_heads)])
        )

    def make_layer(self, config, dtype, param_dtype):
        width, eps = config.hidden_size, config.rms_norm_eps
        ffn = SwiGLU(width, config.feed_forward_size, dtype, config.initializer_range, param_dtype)
        attention = Attention(config, dtype, False, param_dtype, shifts=config.position_embedding == "alibi")
        return Layer(RMSNorm(width, eps), attention, RMSNorm(width, eps), ffn)

    def rope_cache(self, position_BT):
        """(cos, ±sin), (B, 1, T, K) float32 each, see ``apply_rotary``; on Ascend (cos, sin), see
        ``ascend.rotated``."""
        if not self.rope:
            return None
        angle = (position_BT.astype(ms.float32)[..., None] * self.frequencies)[:, None]
        cos, sin = ops.cos(angle), ops.sin(angle)
        return ops.cat((cos, cos), -1), ops.cat((sin if self.ascend else -sin, sin), -1)

    def alibi_bias(self, query_BT, key_BS):
        """ALiBi: a key counts less the farther back it stands, (B, H, T, S) float32."""
        if self.rope:
            return 0.0
        back_BTS = ops.minimum(key_BS[:, None, :] - query_BT[:, :, None], 0).astype(ms.float32)
        return back_BTS[:, None] * self.slopes[:, None, None]

    def head_weight(self):
        return self.lm_head.weight

    def head_scale(self):
        """One over the length of each row of the head (V,), where Baichuan2 normalises them."""
        if not self.normalized_head:
            return 1.0
        weight_VD = self.head_weight().astype(ms.float32)
        row_V1D = weight_VD.reshape(-1, 1, weight_VD.shape[1])
        # torch's normalize: a length of at least 1e-12
        return ops.rsqrt(ops.maximum(SCORES(row_V1D, row_V1D).reshape(-1), 1e-24))
