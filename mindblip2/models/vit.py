"""EVA-CLIP's vision transformer as BLIP-2 uses it (LAVIS ``eva_vit.py``): pre-norm blocks, the class token
first, no final norm.

B batch · C channels · H, W pixels · N patches · P = N + 1 tokens · D width · in attention: H heads · K head
width
"""

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import Normal, Zero, initializer

from mindblip2 import device
from mindblip2.distributed import comm
from mindblip2.distributed.sharding import Split
from mindblip2.models.layers import (
    FeedForward,
    LayerNorm,
    Linear,
    SharedLayer,
    attend,
    linear,
    local_heads,
    merge_heads,
    parameter,
    split_heads,
)
from mindblip2.models.rng import DropPath


class PatchEmbed(nn.Cell):
    """A convolution whose kernel is its stride is one product per patch: (B, C, S, S) → (B, N, D)."""

    def __init__(self, config, dtype):
        super().__init__()
        self.patch = config.patch_size
        self.size = config.image_size
        self.proj = Linear(
            config.num_channels * self.patch**2, config.hidden_size, dtype, std=config.initializer_range
        )

    def construct(self, image_BCHW):
        batch, channels, height, width = image_BCHW.shape
        if height != self.size or width != self.size:
            raise ValueError(
                f"the ViT is built for {self.size} x {self.size} pixels, but the image is {height} x "
                f"{width}: "
                "resize it with the model's processor, or convert the checkpoint with --image_size"
            )
        rows = height // self.patch
        patches = image_BCHW.reshape(batch, channels, rows, self.patch, rows, self.patch)
        return self.proj(patches.transpose(0, 2, 4, 1, 3, 5).reshape(batch, rows * rows, -1))


class ViTAttention(nn.Cell):
    """Self-attention with one fused qkv product.  EVA gives q and v a bias and k none: a bias of k adds the
    same number to all scores of a query, which the softmax ignores."""

    def __init__(self, config, dtype):
        super().__init__()
        width = config.hidden_size
        self.heads, self.inner, self.flash = (
            local_heads(config.num_attention_heads),
            local_heads(width),
            device.flash(dtype),
        )
        self.qkv = Linear(
            width, 3 * width, dtype, bias=False, std=config.initializer_range, split="outputs", parts=3
        )
        self.has_bias = config.qkv_bias
        if self.has_bias:
            self.q_bias = parameter(Zero(), (width,), "q_bias", split=Split(0, width))
            self.v_bias = parameter(Zero(), (width,), "v_bias", split=Split(0, width))
        self.proj = Linear(width, width, dtype, std=config.initializer_range, split="inputs")

    def construct(self, x_BPD):
        bias = ops.cat((self.q_bias, ops.zeros_like(self.q_bias), self.v_bias)) if self.has_bias else None
        dtype = self.qkv.dtype
        product = linear(
            comm.copy_to_tensor_parallel(x_BPD).astype(dtype), self.qkv.weight.astype(dtype), bias
        )
        query, key, value = ops.split(product, self.inner, -1)
        context_BHPK = attend(
            split_heads(query, self.heads),
            split_heads(key, self.heads),
            split_heads(value, self.heads),
            flash=self.flash,
        )
        return self.proj(merge_heads(context_BHPK))


class ViTBlock(nn.Cell):
    """x + attn(norm1(x)), then x + mlp(norm2(x))."""

    def __init__(self, config, dtype="float32", drop_path=0.0):
        super().__init__()
        self.norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.attn = ViTAttention(config, dtype)
        self.norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = FeedForward(config.hidden_size, config.intermediate_size, dtype, config.initializer_range)
        self.attn_drop, self.mlp_drop = DropPath(drop_path), DropPath(drop_path)

    def construct(self, x_BPD):
        x_BPD = x_BPD + self.attn_drop(self.attn(self.norm1(x_BPD)))
        return x_BPD + self.mlp_drop(self.mlp(self.norm2(x_BPD)))


class ViT(nn.Cell):
    """Normalised pixels (B, 3, S, S) → the last block's output of all tokens (B, P, D), the class token
    first."""

    def __init__(self, config, dtype="float32"):
        super().__init__()
        depth, width = config.num_hidden_layers, config.hidden_size
        self.patch_embed = PatchEmbed(config, dtype)
        self.cls_token = Parameter(
            initializer(Normal(config.initializer_range or 0.02), (1, 1, width)), name="cls_token"
        )
        self.pos_embed = Parameter(
            initializer(Normal(config.position_range), (1, config.num_tokens, width)), name="pos_embed"
        )
        rates = [config.drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.CellList([ViTBlock(config, dtype, rate) for rate in rates])
        self._block_arguments, self._frame = (config, dtype), ()  # of by_blocks; in a tuple: it is no child

    def construct(self, image_BCHW):
        x_BPD = self.embed(image_BCHW)
        for block in self.blocks:
            x_BPD = block(x_BPD)
        return x_BPD

    def embed(self, image_BCHW):
        """Patches with their positions, behind the class token."""
        patch_BND = self.patch_embed(image_BCHW)
        cls_B1D = ops.tile(self.cls_token.astype(patch_BND.dtype), (patch_BND.shape[0], 1, 1))
        return ops.cat((cls_B1D, patch_BND), 1) + self.pos_embed.astype(patch_BND.dtype)

    def by_blocks(self, image_BCHW):
        """The same numbers, called from outside of a graph.  In graph mode one block is compiled, and takes
        the weights of all in turn: compiled in a tenth of the time, and the memory of activations is one
        block's.  Within one graph MindSpore does not reuse it on a CPU, and ViT-g needs 3 GB for a
        picture."""
        if ms.get_context("mode") != ms.GRAPH_MODE:
            return self(image_BCHW)
        if not self._frame:
            self._frame = (SharedLayer(lambda: ViTBlock(*self._block_arguments)),)
        x_BPD = self.embed(image_BCHW)
        for block in self.blocks:
            x_BPD = self._frame[0].of(block, x_BPD)
        return x_BPD
