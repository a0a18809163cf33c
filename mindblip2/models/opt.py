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

    def __init__(self, width, hidden, dtype="float32", std=0.02, held="float32"):
        super().__init__()
        self.up = Linear(width, hidden, dtype, std=std, held=held, split="outputs")
        self.down = Linear(hidden, width, dtype, std=std, held=held, split="inputs")

    def construct(self, x):
        return self.down(ops.relu(self.up(comm.copy_to_tensor_parallel(x))))


class OPT(LanguageModel):
    """See :class:`LanguageModel`."""

    def __init__(self, config, dtype="float32", held="float32"):
        width = config.hidden_size
        super().__init__(config, dtype, held, LayerNorm(width, config.layer_norm_eps))
        self.position = Embedding(
            config.max_position_embeddings + OFFSET, width, config.initializer_range, held
        )

    def make_layer(self, config, dtype, held):
        width, eps = config.hidden_size, config.layer_norm_eps
        ffn = FeedForward(width, config.intermediate_size, dtype, config.initializer_range, held)
        return Layer(LayerNorm(width, eps), Attention(config, dtype, True, held), LayerNorm(width, eps), ffn)

    def placed(self, x_BTD, position_BT):
        return x_BTD + self.position(position_BT + OFFSET).astype(x_BTD.dtype)

    def head_weight(self):
        return self.word.embedding_table
