"""The dimensions of a torch twin, given or read off a LAVIS checkpoint's shapes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReferenceConfig:
    """Dimensions; the defaults are those of the published stage-1 model."""

    image_size: int = 224
    patch: int = 14
    vit_width: int = 1408
    vit_depth: int = 39  # 0: no ViT is built, as in blip2_pretrained.pth, which holds none
    vit_heads: int = 16
    vit_hidden: int = 6144
    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn: int = 3072
    vocab: int = 30523
    positions: int = 512
    cross_attention_freq: int = 2
    queries: int = 32
    embed: int = 256
    vit_eps: float = 1e-6  # EVA's blocks
    ln_vision_eps: float = 1e-5  # torch's default, which LAVIS leaves; HF has 1e-6 on the same weights
    qformer_eps: float = 1e-12  # BERT's
    bos: int = 30522  # [DEC], the token that starts a caption, is added behind BERT's 30522 words
    pad: int = 0  # [PAD] of BERT
    channels: int = 3  # of a picture
    smoothing: float = 0.1  # of the ITC and LM targets; ITM has none
    gather_with_grad: bool = False  # gradients through the gathered features of ITC; LAVIS has none
    query_reduce: str = "max"  # zero-shot score over the queries: the best one's, or "first"
    gelu: str = "none"  # torch's ``approximate``: BLIP-2 is exact; "tanh" is there to be a negative control

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], vit_heads: int | None = None, heads: int | None = None
    ) -> "ReferenceConfig":
        """Read the dimensions off the shapes. Heads are in no shape: 88 (ViT) and 64 (Q-Former) wide unless
        given."""
        shape = {name: tuple(value.shape) for name, value in state.items()}
        layer = "Qformer.bert.encoder.layer."
        crossing = sorted({int(name.split(".")[4]) for name in shape if ".crossattention." in name})
        layers = 1 + max(int(name.split(".")[4]) for name in shape if name.startswith(layer))
        _, queries, width = shape["query_tokens"]
        (vit_width,) = shape["ln_vision.weight"]
        return cls(
            **vit_dimensions(shape, vit_width, vit_heads),
            width=width,
            layers=layers,
            heads=heads or whole(width, 64, "heads"),
            ffn=shape[f"{layer}0.intermediate.dense.weight"][0],
            vocab=shape["Qformer.bert.embeddings.word_embeddings.weight"][0],
            positions=shape["Qformer.bert.embeddings.position_embeddings.weight"][0],
            cross_attention_freq=crossing[1] if len(crossing) > 1 else layers,
            queries=queries,
            embed=shape["vision_proj.weight"][0],
        )


def vit_dimensions(shape: Mapping[str, tuple[int, ...]], width: int, heads: int | None) -> dict[str, int]:
    """The ViT's part of a ReferenceConfig; depth 0 if the checkpoint holds no ViT."""
    root = "visual_encoder."
    blocks = {int(name.split(".")[2]) for name in shape if name.startswith(root + "blocks.")}
    if not blocks:
        return {"vit_width": width, "vit_depth": 0}
    patch = shape[root + "patch_embed.proj.weight"][-1]
    side = round((shape[root + "pos_embed"][1] - 1) ** 0.5)
    return {
        "image_size": side * patch,
        "patch": patch,
        "vit_width": width,
        "vit_depth": 1 + max(blocks),
        "vit_heads": heads or whole(width, 88, "vit_heads"),
        "vit_hidden": shape[root + "blocks.0.mlp.fc1.weight"][0],
    }


def whole(width: int, head: int, name: str) -> int:
    """width / head, if that is a whole number of heads."""
    if width % head:
        raise ValueError(f"width {width} is no multiple of the published head width {head}: give {name}=")
    return width // head
