"""The torch twin's image side: EVA-CLIP ViT-g as BLIP-2 uses it, under LAVIS's parameter names.

39 of EVA's 40 blocks, no final norm, no pooling: the paper takes the output of the penultimate layer (section
3.1), and ``ln_vision`` of the twin follows. Source of every number: LAVIS ``eva_vit.py``, whose results under
tests/reference/tiny it reproduces.

    # B batch · P patches + cls · W width · H heads · K head width
"""

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention over all patches, (B, P, W) -> (B, P, W), without mask or dropout.

    One matrix makes q, k and v; EVA gives q and v a bias and k none, hence two parameters and the zeros
    between them.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BPW: torch.Tensor) -> torch.Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x_BPW, self.qkv.weight, bias)
        q_BHPK, k_BHPK, v_BHPK = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_BHPK = F.scaled_dot_product_attention(q_BHPK, k_BHPK, v_BHPK)
        return self.proj(mixed_BHPK.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with GELU between, (B, P, W) -> (B, P, W). ``gelu`` is torch's ``approximate``: exact is
    "none"."""

    def __init__(self, width: int, hidden: int, gelu: str = "none"):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.gelu = gelu

    def forward(self, x_BPW: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x_BPW), approximate=self.gelu))


class Block(nn.Module):
    """One pre-norm transformer block, (B, P, W) -> (B, P, W); stands alone when full-width parity streams
    blocks."""

    def __init__(self, width: int, heads: int, hidden: int, eps: float = 1e-6, gelu: str = "none"):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, hidden, gelu)

    def forward(self, x_BPW: torch.Tensor) -> torch.Tensor:
        x_BPW = x_BPW + self.attn(self.norm1(x_BPW))
        return x_BPW + self.mlp(self.norm2(x_BPW))


class PatchEmbed(nn.Module):
    """Image (B, 3, S, S) -> one row per patch (B, P - 1, W), row by row."""

    def __init__(self, width: int, patch: int, channels: int = 3):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, image_B3SS: torch.Tensor) -> torch.Tensor:
        return self.proj(image_B3SS).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """Image (B, 3, S, S) -> raw output of the last block (B, P, W), class token first, P = 1 + (S /
    patch)^2."""

    def __init__(self, config):
        super().__init__()
        width = config.vit_width
        tokens = 1 + (config.image_size // config.patch) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.patch_embed = PatchEmbed(width, config.patch, config.channels)
        # LAVIS's dropout of rate 0; here a name to capture the embedded tokens at
        self.pos_drop = nn.Identity()
        self.blocks = nn.ModuleList(
            Block(width, config.vit_heads, config.vit_hidden, config.vit_eps, config.gelu)
            for _ in range(config.vit_depth)
        )

    def forward(self, image_B3SS: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed(image_B3SS)
        x_BPW = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1)
        x_BPW = self.pos_drop(x_BPW + self.pos_embed)
        for block in self.blocks:
            x_BPW = block(x_BPW)
        return x_BPW
