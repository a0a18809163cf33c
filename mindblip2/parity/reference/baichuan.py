"""Baichuan in PyTorch, written afresh: its own code lives with its weights, not in transformers.

It is Llama but for three things: one matrix ``W_pack`` makes queries, keys and values (all of them); the 13B
models have ALiBi in the place of rotary positions; Baichuan2 divides each row of its head by its length. So
these parts replace those of transformers' Llama.

    # B batch · T positions · S positions of the keys · D width · H heads · K head width · V vocabulary
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM
from transformers.models.llama import modeling_llama


def alibi_slopes(heads: int) -> list[float]:
    """One slope per head, as in the paper's code: halves of halves, and where the number of heads is no power
    of two, every other slope of twice the next lower power."""
    power = 2 ** math.floor(math.log2(heads))
    first = 2 ** (-(2 ** -(math.log2(power) - 3)))
    found = [first * first**i for i in range(power)]
    return found if power == heads else found + alibi_slopes(2 * power)[0::2][: heads - power]


class PackedAttention(nn.Module):
    """Takes the place of transformers' ``self_attn``, with rotary positions or with ALiBi."""

    def __init__(self, config, layer: int, alibi: bool):
        super().__init__()
        self.heads, self.layer, self.alibi = config.num_attention_heads, layer, alibi
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self, hidden_states, position_embeddings=None, attention_mask=None, past_key_values=None, **_
    ):
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.W_pack(hidden_states).chunk(3, -1)
        )
        if not self.alibi:
            query, key = modeling_llama.apply_rotary_pos_emb(query, key, *position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer)
        scores_BHTS = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + attention_mask
        if self.alibi:
            scores_BHTS = scores_BHTS + self.distance(query.shape[2], key.shape[2]).to(scores_BHTS.dtype)
        context = torch.softmax(scores_BHTS, -1) @ value
        return self.o_proj(context.transpose(1, 2).flatten(2)), None

    def distance(self, queries: int, keys: int) -> torch.Tensor:
        """(H, T, S) float64: minus the slope for each column between a query and a key; the queries are the
        last columns."""
        column = torch.arange(keys)
        back_TS = column[None] - column[keys - queries :, None]
        return torch.tensor(alibi_slopes(self.heads), dtype=torch.float64)[:, None, None] * back_TS


class NormHead(nn.Module):
    """Cosine in the place of a product, but for the length of the hidden state."""

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.vocab_size, config.hidden_size))

    def forward(self, hidden):
        return F.linear(hidden, F.normalize(self.weight))


def baichuan(config, alibi: bool, normalised: bool) -> LlamaForCausalLM:
    """A model with the names of a Baichuan checkpoint."""
    model = LlamaForCausalLM(config)
    for i, layer in enumerate(model.model.layers):
        layer.self_attn = PackedAttention(config, i, alibi)
    if normalised:
        model.lm_head = NormHead(config)
    return model
