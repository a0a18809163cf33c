"""The torch twin's Q-Former: BERT with cross-attention and a second feed-forward for queries, under LAVIS's
names.

Queries and text share self-attention (paper, figure 2); what sees what is a mask, made by the twin's verbs.
Source of every number: LAVIS ``Qformer.py``, whose results under tests/reference/tiny it reproduces.

    # B batch · Q queries · T text · L = Q + T · C cached tokens · P patches + cls · D width · W image width
    # H heads · K head width · V vocabulary
"""

import torch
from torch import nn
from torch.nn import functional as F

MASKED = -10000.0  # added to a masked score, as BERT does: finite, so that a row of pads has no NaN

KeyValue = tuple[torch.Tensor, torch.Tensor]  # of one self-attention, (B, H, C, K) each


class AddNorm(nn.Module):
    """``LayerNorm(dense(x) + residual)``, BERT's way out of attention and of the feed-forward."""

    def __init__(self, width_in: int, width: int, eps: float):
        super().__init__()
        self.dense = nn.Linear(width_in, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class Attention(nn.Module):
    """Self-attention, or cross-attention if ``width_kv`` differs: (B, L, D) -> (B, L, D) and the keys and
    values used.

    ``cache`` holds keys and values of earlier tokens, which come before those of ``source`` (``x`` itself by
    default).
    """

    def __init__(self, config, width_kv: int):
        super().__init__()
        width, self.heads = config.width, config.heads
        self.self = nn.ModuleDict(
            {
                "query": nn.Linear(width, width),
                "key": nn.Linear(width_kv, width),
                "value": nn.Linear(width_kv, width),
            }
        )
        self.output = AddNorm(width, width, config.qformer_eps)

    def forward(
        self, x_BLD, source=None, bias=None, cache: KeyValue | None = None
    ) -> tuple[torch.Tensor, KeyValue]:
        source = x_BLD if source is None else source
        q_BHLK = self.split(self.self["query"](x_BLD))
        k_BHCK = self.split(self.self["key"](source))
        v_BHCK = self.split(self.self["value"](source))
        if cache is not None:
            k_BHCK = torch.cat([cache[0], k_BHCK], dim=2)
            v_BHCK = torch.cat([cache[1], v_BHCK], dim=2)
        mixed_BHLK = F.scaled_dot_product_attention(q_BHLK, k_BHCK, v_BHCK, attn_mask=bias)
        return self.output(mixed_BHLK.transpose(1, 2).flatten(2), x_BLD), (k_BHCK, v_BHCK)

    def split(self, x_BLD: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (B, H, L, K)."""
        return x_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """One Q-Former layer on [queries | text], (B, L, D) -> (B, L, D) and its self-attention's keys and
    values.

    The first ``queries`` rows cross-attend to the image, if this layer does so and there is an image, and
    take ``intermediate_query``/``output_query``; the rest, the text, takes ``intermediate``/``output``.
    """

    def __init__(self, config, cross: bool):
        super().__init__()
        self.gelu = config.gelu
        self.attention = Attention(config, config.width)
        self.crossattention = Attention(config, config.vit_width) if cross else None
        for suffix in ("", "_query"):
            self.add_module(
                "intermediate" + suffix, nn.ModuleDict({"dense": nn.Linear(config.width, config.ffn)})
            )
            self.add_module("output" + suffix, AddNorm(config.ffn, config.width, config.qformer_eps))

    def forward(self, x_BLD, bias=None, image_BPW=None, cache: KeyValue | None = None, queries: int = 0):
        x_BLD, memory = self.attention(x_BLD, bias=bias, cache=cache)
        query_BQD, text_BTD = x_BLD[:, :queries], x_BLD[:, queries:]
        if queries and self.crossattention is not None and image_BPW is not None:
            query_BQD, _ = self.crossattention(query_BQD, source=image_BPW)
        parts = []
        if queries:
            parts.append(self.output_query(self.hidden(self.intermediate_query, query_BQD), query_BQD))
        if text_BTD.shape[1]:
            parts.append(self.output(self.hidden(self.intermediate, text_BTD), text_BTD))
        return torch.cat(parts, dim=1), memory

    def hidden(self, intermediate: nn.ModuleDict, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(intermediate["dense"](x), approximate=self.gelu)


class Embeddings(nn.Module):
    """[queries | words + positions] through one LayerNorm, -> (B, L, D). Queries have no position, text
    starts at 0."""

    def __init__(self, config):
        super().__init__()
        # no padding_idx: row 0 is trained in LAVIS
        self.word_embeddings = nn.Embedding(config.vocab, config.width)
        self.position_embeddings = nn.Embedding(config.positions, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.qformer_eps)
        self.register_buffer("position_ids", torch.arange(config.positions)[None])

    def forward(self, ids_BT=None, query_BQD=None, start: int = 0) -> torch.Tensor:
        parts = [] if query_BQD is None else [query_BQD]
        if ids_BT is not None:
            position_1T = self.position_ids[:, start : start + ids_BT.shape[1]]
            parts.append(self.word_embeddings(ids_BT) + self.position_embeddings(position_1T))
        return self.LayerNorm(torch.cat(parts, dim=1))


class Bert(nn.Module):
    """Embeddings and layers; cross-attention in layers 0, f, 2f… for ``cross_attention_freq`` f."""

    def __init__(self, config):
        super().__init__()
        self.embeddings = Embeddings(config)
        layers = [Layer(config, cross=i % config.cross_attention_freq == 0) for i in range(config.layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def forward(self, ids_BT=None, query_BQD=None, bias=None, image_BPW=None, cache=None, start: int = 0):
        """-> hidden (B, L, D) and, per layer, the self-attention's keys and values including ``cache``."""
        queries = 0 if query_BQD is None else query_BQD.shape[1]
        x_BLD = self.embeddings(ids_BT, query_BQD, start)
        memory = []
        for i, layer in enumerate(self.encoder["layer"]):
            x_BLD, kept = layer(x_BLD, bias, image_BPW, cache[i] if cache else None, queries)
            memory.append(kept)
        return x_BLD, memory


class Transform(nn.Module):
    """Dense, GELU, LayerNorm before the vocabulary, (B, T, D) -> (B, T, D)."""

    def __init__(self, config):
        super().__init__()
        self.gelu = config.gelu
        self.dense = nn.Linear(config.width, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=config.qformer_eps)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.LayerNorm(F.gelu(self.dense(x_BTD), approximate=self.gelu))


class Predictions(nn.Module):
    """The LM head, (B, T, D) -> (B, T, V). ``bias`` and ``decoder.bias`` are one tensor, as in BERT."""

    def __init__(self, config):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(config.vocab))
        self.transform = Transform(config)
        self.decoder = nn.Linear(config.width, config.vocab)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.transform(x_BTD))


class QFormer(nn.Module):
    """Bert and its LM head, with the two ties of LAVIS: word embeddings = decoder weight, and the head's
    bias."""

    def __init__(self, config):
        super().__init__()
        self.bert = Bert(config)
        self.cls = nn.ModuleDict({"predictions": Predictions(config)})
        self.tie()

    def tie(self) -> None:
        """Make one parameter of each tied pair; called again after weights have been assigned."""
        head = self.cls["predictions"]
        head.decoder.weight = self.bert.embeddings.word_embeddings.weight
        head.decoder.bias = head.bias

    def logits(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Hidden (B, T, D) -> scores over the vocabulary (B, T, V)."""
        return self.cls["predictions"](x_BTD)


def padding_bias(mask_BL: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Mask (B, L), 1 = visible, -> what to add to the scores of every query row, (B, 1, 1, L)."""
    return ((1 - mask_BL.to(dtype)) * MASKED)[:, None, None, :]


def caption_bias(mask_BT: torch.Tensor, cached: int, dtype: torch.dtype) -> torch.Tensor:
    """What text may see while it is being written, (B, 1, T, C + T): all that is cached, and earlier words
    but no pads.

        cached  text
        1 1 1   1 0 0
        1 1 1   1 1 0
        1 1 1   1 1 1
    """
    length = mask_BT.shape[1]
    causal_TT = torch.ones(length, length, dtype=dtype, device=mask_BT.device).tril()
    visible_BTT = causal_TT * mask_BT.to(dtype)[:, None, :]
    prefix_BTC = visible_BTT.new_ones(len(mask_BT), length, cached)
    return ((1 - torch.cat([prefix_BTC, visible_BTT], dim=2)) * MASKED)[:, None]
