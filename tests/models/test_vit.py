"""The ViT called block by block from outside of a graph."""

import mindspore as ms
import numpy as np
import pytest

from mindblip2.config import ViTConfig
from mindblip2.models import layers
from mindblip2.models.vit import ViT


@pytest.mark.parametrize(
    "mode, large", [(ms.GRAPH_MODE, layers.LARGE), (ms.GRAPH_MODE, 0), (ms.PYNATIVE_MODE, 0)]
)
def test_one_block_with_the_weights_of_all_gives_the_same(mode, large, monkeypatch):
    """Of small blocks, and of those that count as large."""
    monkeypatch.setattr(layers, "LARGE", large)
    before = ms.get_context("mode")
    ms.set_context(mode=mode)
    try:
        config = ViTConfig(
            image_size=28, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48
        )
        vit = ViT(config).set_train(False)
        names = list(vit.parameters_dict())
        image = ms.Tensor(np.random.default_rng(0).standard_normal((2, 3, 28, 28), np.float32))
        first = vit.by_blocks(image).asnumpy()
        assert np.array_equal(first, vit(image).asnumpy()) and list(vit.parameters_dict()) == names
        vit.blocks[1].mlp.up.bias.set_data(vit.blocks[1].mlp.up.bias + 1)
        assert np.array_equal(vit.by_blocks(image).asnumpy(), vit(image).asnumpy())
        assert not np.array_equal(vit.by_blocks(image).asnumpy(), first)  # the comparison can fail
    finally:
        ms.set_context(mode=before)
