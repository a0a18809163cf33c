"""OPT, the language model of LAVIS's Blip2OPT: learnt positions, ReLU, biases, and the word embeddings as the
head.

B batch · T positions · D width · F feed-forward width · V vocab
"""

from mindspore import nn, ops

from mindblip2.distributed import comm
from mindblip2.models.decoder import Attention, LanguageModel, Layer
from mindblip2.models.layers import Embedding, LayerNorm, Linear

OFFSET = 2  # the first rows of OPT's table of positions belong to no position


class FeedForward(nn.Cell):
    """down(relu(up(x))): (…, D) → (…, F) → (…, D)."""

    def __init__(self, width, hidden, dtype="float32", std=0.02, param_dtype="float32"):
        super().__init__()
        self.up = Linear(width, hidden, dtype, std=std, param_dtype=param_dtype, split="outputs")
        self.down = Linear(hidden, width, dtype, std=std, param_dtype=param_dtype, split="inputs")

    def construct(self, x):
        return self.down(ops.relu(self.up(comm.copy_to_tensor_parallel(x))))


class OPT(LanguageModel):
    """See :class:`LanguageModel`."""

    def __init__(self, config, dtype="float32", param_dtype="float32"):
        width = config.hidden_size
        super().__init__(config, dtype, param_dtype, LayerNorm(width, config.layer_norm_eps))
        self.position = Embedding(
            config.max_position_embeddings + OFFSET, width, config.initializer_range, param_dtype
        )

    def make_layer(self, config, dtype, param_dtype):
        width, eps = config.hidden_size, config.layer_norm_eps
        ffn = FeedForward(width, config.intermediate_size, dtype, config.initializer_range, param_dtype)
        return Layer(
            LayerNorm(width, eps), Attention(config, dtype, True, param_dtype), LayerNorm(width, eps), ffn
        )

    def add_position_embeddings(self, x_BTD, position_BT):
        return x_BTD + self.position(position_BT + OFFSET).astype(x_BTD.dtype)

    def head_weight(self):
        return self.word.embedding_table
