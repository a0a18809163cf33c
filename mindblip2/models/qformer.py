"""The Q-Former (paper section 3.1): BERT layers in which learnt queries read the image through
cross-attention.

It has four verbs, each one forward pass with its own mask: ``see`` the image with the queries, ``read`` a
text, ``match`` a text with an image, ``caption`` what was seen.  The image enters as a ``memory``: the keys
and values of every cross-attention layer, made once and shared by all passes.

B batch · I images · R = (B / I) · Q rows of an image · Q queries · T text · L = Q + T · S = past + T keys · P
image tokens W image width · D width · H heads · K head width · V vocab
"""

import mindspore as ms
from mindspore import Parameter, nn, ops
from mindspore.common.initializer import Normal, Zero, initializer

from mindblip2 import device
from mindblip2.distributed import comm
from mindblip2.distributed.sharding import Split
from mindblip2.models.layers import (
    GELU,
    MASKED,
    Embedding,
    FeedForward,
    LayerNorm,
    Linear,
    attend,
    gather_vocabulary,
    linear,
    local_heads,
    merge_heads,
    parameter,
    split_heads,
)
from mindblip2.models.rng import Dropout


def pad_mask(input_ids_BT, pad_id):
    """1 where there is a token, 0 at padding: (B, T) float32."""
    return (input_ids_BT != pad_id).astype(ms.float32)


def read_bias(mask_BT):
    """Every text position sees every real token.  For a text of 3 in a row of 4::

    x x x .      x seen   . MASKED
    x x x .
    x x x .
    """
    return ((1.0 - mask_BT) * MASKED)[:, None, None, :]


def match_bias(mask_BT, queries):
    """Queries and text see each other in both directions; only padding is hidden.  2 queries, text of 2 in a row of 3::

    q q | x x .
    """
    seen_BQ = ops.ones((mask_BT.shape[0], queries), ms.float32)
    return read_bias(ops.cat((seen_BQ, mask_BT), 1))


def caption_bias(mask_BT, past):
    """Text sees what is cached (the queries) and the text before it.  2 cached, text of 3 in a row of 4::

    q q | x . . .
    q q | x x . .
    q q | x x x .
    """
    length = mask_BT.shape[1]
    causal_TT = ops.tril(ops.ones((length, length), ms.float32))
    text_BTT = causal_TT[None] * mask_BT[:, None, :]
    seen_BTP = ops.ones((mask_BT.shape[0], length, past), ms.float32)
    return ((1.0 - ops.cat((seen_BTP, text_BTT), 2)) * MASKED)[:, None]


class SelfAttention(nn.Cell):
    """BERT self-attention, shared by queries and text; ``past`` (key, value) is put before the own keys and
    values."""

    def __init__(self, config, dtype):
        super().__init__()
        width = config.hidden_size
        self.heads, self.flash = local_heads(config.num_attention_heads), device.flash(dtype)
        std = config.initializer_range
        self.query = Linear(width, width, dtype, std=std, split="outputs")
        self.key = Linear(width, width, dtype, std=std, split="outputs")
        self.value = Linear(width, width, dtype, std=std, split="outputs")
        self.output = Linear(width, width, dtype, std=std, split="inputs")
        self.dropout = Dropout(config.attention_probs_dropout_prob, of_heads=True)

    def construct(self, x_BTD, past=None, bias=None):
        x_BTD = comm.copy_to_tensor_parallel(x_BTD)
        own = (split_heads(self.key(x_BTD), self.heads), split_heads(self.value(x_BTD), self.heads))
        key, value = own
        if past is not None:
            key, value = ops.cat((past[0], own[0]), 2), ops.cat((past[1], own[1]), 2)
        context = attend(
            split_heads(self.query(x_BTD), self.heads), key, value, bias, self.dropout, self.flash
        )
        return self.output(merge_heads(context)), own


class CrossAttention(nn.Cell):
    """Queries (B, Q, D) read one layer's image memory (key, value), each (I, H, P, K).  All image tokens are
    seen.

    I = B, or fewer pictures with as many rows each, one picture's rows after the other: they are then more queries of one picture,
    so that many texts meet a picture without a copy of its memory.  A memory of four, (key, value, other key,
    other value), is ITM's in training: of B = 3 I rows the first and the last third meet the own pictures,
    the middle third the others, and nothing is copied."""

    def __init__(self, config, dtype):
        super().__init__()
        self.heads, self.flash = local_heads(config.num_attention_heads), device.flash(dtype)
        self.query = Linear(
            config.hidden_size, config.hidden_size, dtype, std=config.initializer_range, split="outputs"
        )
        self.output = Linear(
            config.hidden_size, config.hidden_size, dtype, std=config.initializer_range, split="inputs"
        )
        self.dropout, self.other_dropout = (
            Dropout(config.attention_probs_dropout_prob, of_heads=True) for _ in range(2)
        )

    def construct(self, query_BQD, memory):
        asked_BQD = self.query(comm.copy_to_tensor_parallel(query_BQD))
        if len(memory) == 2:
            asked_IRD = asked_BQD.reshape(memory[0].shape[0], -1, asked_BQD.shape[2])
            return self.output(self._read(asked_IRD, memory, self.dropout).reshape(asked_BQD.shape))
        images, queries = memory[0].shape[0], query_BQD.shape[1]
        both_IRD = ops.cat((asked_BQD[:images], asked_BQD[2 * images :]), 1)
        both_IRD = self._read(both_IRD, memory[:2], self.dropout)
        other_IQD = self._read(asked_BQD[images : 2 * images], memory[2:], self.other_dropout)
        return self.output(ops.cat((both_IRD[:, :queries], other_IQD, both_IRD[:, queries:])))

    def _read(self, query_IRD, memory, dropout):
        return merge_heads(
            attend(split_heads(query_IRD, self.heads), memory[0], memory[1], None, dropout, self.flash)
        )


class CrossAttentionKV(nn.Cell):
    """Keys and values of the image for every cross-attention layer: (B, P, W) → tuple of (key, value), (B, H,
    P, K) each."""

    def __init__(self, config, dtype):
        super().__init__()
        layers = len(range(0, config.num_hidden_layers, config.cross_attention_freq))
        self.heads = local_heads(config.num_attention_heads)
        sizes, std = (config.encoder_width, config.hidden_size), config.initializer_range
        self.key = nn.CellList([Linear(*sizes, dtype, std=std, split="outputs") for _ in range(layers)])
        self.value = nn.CellList([Linear(*sizes, dtype, std=std, split="outputs") for _ in range(layers)])

    def construct(self, image_BPW):
        image_BPW, memory = comm.copy_to_tensor_parallel(image_BPW), ()
        for key, value in zip(self.key, self.value):
            memory += ((split_heads(key(image_BPW), self.heads), split_heads(value(image_BPW), self.heads)),)
        return memory


class QFormerLayer(nn.Cell):
    """Self-attention over queries and text together, cross-attention and an own feed-forward for the queries,
    the text feed-forward for the text.  Post-norm.  Built without its text half where ``text`` is False
    (stage 2)."""

    def __init__(self, config, dtype="float32", cross=True, text=True):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        ffn = (width, config.intermediate_size, dtype, config.initializer_range)
        self.attention = SelfAttention(config, dtype)
        self.attention_norm = LayerNorm(width, eps)
        self.cross_attention = CrossAttention(config, dtype) if cross else None
        self.cross_norm = LayerNorm(width, eps) if cross else None
        self.query_ffn = FeedForward(*ffn)
        self.query_norm = LayerNorm(width, eps)
        self.text_ffn = FeedForward(*ffn) if text else None
        self.text_norm = LayerNorm(width, eps) if text else None
        self.context_dropout, self.cross_dropout, self.query_dropout, self.text_dropout = (
            Dropout(config.hidden_dropout_prob) for _ in range(4)
        )

    def construct(self, query_BQD, text_BTD, memory=None, past=None, bias=None):
        x_BLD = _joined(query_BQD, text_BTD)
        context_BLD, own = self.attention(x_BLD, past, bias)
        x_BLD = self.attention_norm(x_BLD + self.context_dropout(context_BLD))
        if query_BQD is not None:
            queries = query_BQD.shape[1]
            query_BQD = self._see(x_BLD[:, :queries], memory)
            x_BLD = x_BLD[:, queries:]
        if text_BTD is not None:
            text_BTD = self.text_norm(x_BLD + self.text_dropout(self.text_ffn(x_BLD)))
        return query_BQD, text_BTD, own

    def _see(self, query_BQD, memory):
        if self.cross_attention is not None:
            query_BQD = self.cross_norm(
                query_BQD + self.cross_dropout(self.cross_attention(query_BQD, memory))
            )
        return self.query_norm(query_BQD + self.query_dropout(self.query_ffn(query_BQD)))


class Encoder(nn.Cell):
    """The stack of layers.  Any of its inputs may be None; returns queries, text and the keys and values of
    this pass."""

    def __init__(self, config, dtype="float32", text=True):
        super().__init__()
        self.freq = config.cross_attention_freq
        self.layers = nn.CellList(
            [
                QFormerLayer(config, dtype, cross=i % self.freq == 0, text=text)
                for i in range(config.num_hidden_layers)
            ]
        )

    def construct(self, query_BQD, text_BTD, memory=None, past=None, bias=None):
        cache = ()
        for i, layer in enumerate(self.layers):
            layer_memory = memory[i // self.freq] if memory is not None and i % self.freq == 0 else None
            query_BQD, text_BTD, own = layer(
                query_BQD, text_BTD, layer_memory, None if past is None else past[i], bias
            )
            cache += (own,)
        return query_BQD, text_BTD, cache


class LMHead(nn.Cell):
    """BERT's prediction head; the decoder is the word embedding itself, so the table is an argument, not a
    parameter.

    On a model group logits are those of this card's words: see ``gather_vocabulary``."""

    def __init__(self, config, dtype):
        super().__init__()
        self.dtype = dtype
        self.transform = Linear(config.hidden_size, config.hidden_size, dtype, std=config.initializer_range)
        self.gelu = GELU()
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = parameter(Zero(), (config.vocab_size,), "bias", split=Split(0, config.vocab_size))

    def construct(self, text_BTD, table_VD):
        x_BTD = comm.copy_to_tensor_parallel(self.norm(self.gelu(self.transform(text_BTD))))
        return linear(x_BTD, table_VD.astype(x_BTD.dtype)).astype(ms.float32) + self.bias


class TextEmbedding(nn.Cell):
    """word + position of ids (B, T) int32 from ``start`` on → (B, T, D); before the shared embedding norm."""

    def __init__(self, config):
        super().__init__()
        self.word = Embedding(config.vocab_size, config.hidden_size, config.initializer_range, split=True)
        self.position = Embedding(
            config.max_position_embeddings, config.hidden_size, config.initializer_range
        )

    def construct(self, ids_BT, start=0):
        return self.word(ids_BT) + self.position(ops.arange(ids_BT.shape[1]) + start)


class QFormer(nn.Cell):
    """The four verbs over one stack of layers.  ``text=False`` builds it without the text half, for stage
    2."""

    def __init__(self, config, dtype="float32", text=True):
        super().__init__()
        self.pad_id, self.bos_id, self.vocab = config.pad_token_id, config.bos_token_id, config.vocab_size
        self.query_tokens = Parameter(
            initializer(
                Normal(config.initializer_range or 0.02), (1, config.query_length, config.hidden_size)
            ),
            name="query_tokens",
        )
        self.embeddings = TextEmbedding(config) if text else None
        self.embedding_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.query_dropout, self.text_dropout = (
            Dropout(config.hidden_dropout_prob),
            Dropout(config.hidden_dropout_prob),
        )
        self.memory = CrossAttentionKV(config, dtype)
        self.encoder = Encoder(config, dtype, text)
        self.lm_head = LMHead(config, dtype) if text else None

    def see(self, memory):
        """Queries look at the image.  Returns (B, Q, D) and the keys and values of the queries in every
        layer."""
        query_BQD, _, cache = self.encoder(self._queries(memory[0][0].shape[0]), None, memory)
        return query_BQD, cache

    def read(self, input_ids_BT):
        """Text alone, bidirectional, padding hidden → (B, T, D)."""
        bias = read_bias(pad_mask(input_ids_BT, self.pad_id))
        return self.encoder(None, self._text(input_ids_BT), None, None, bias)[1]

    def match(self, input_ids_BT, memory):
        """Queries see the image and the text, the text sees the queries → queries (B, Q, D) and text (B, T,
        D).

        The memory is of B pictures, or of fewer that several texts belong to, see CrossAttention."""
        query_BQD = self._queries(input_ids_BT.shape[0])
        bias = match_bias(pad_mask(input_ids_BT, self.pad_id), query_BQD.shape[1])
        return self.encoder(query_BQD, self._text(input_ids_BT), memory, None, bias)[:2]

    def caption(self, input_ids_BT, cache):
        """Causal text after the queries of ``see``: ids that begin with [DEC] → logits (B, T, V) of the next
        token, on a model group of this card's words."""
        bias = caption_bias(pad_mask(input_ids_BT, self.pad_id), cache[0][0].shape[2])
        text_BTD = self.encoder(None, self._text(input_ids_BT), None, cache, bias)[1]
        return self.lm_head(text_BTD, self.embeddings.word.embedding_table)

    def next_token(self, token_B1, position, cache, bias):
        """One step of ``caption``: the token at ``position`` → logits (B, V) and its own keys and values per
        layer."""
        text_B1D, own = self.encoder(None, self._text(token_B1, position), None, cache, bias)[1:]
        logits_BV = self.lm_head(text_B1D, self.embeddings.word.embedding_table)[:, 0]
        return gather_vocabulary(logits_BV, self.vocab), own

    def _queries(self, batch):
        query_BQD = ops.tile(self.query_tokens, (batch, 1, 1))
        # the norm of BERT's embeddings is for queries too
        return self.query_dropout(self.embedding_norm(query_BQD))

    def _text(self, input_ids_BT, start=0):
        return self.text_dropout(self.embedding_norm(self.embeddings(input_ids_BT, start)))


def _joined(query_BQD, text_BTD):
    if query_BQD is None:
        return text_BTD
    return query_BQD if text_BTD is None else ops.cat((query_BQD, text_BTD), 1)
