"""Cross-attention: how rows of texts meet pictures without copies of the pictures' memories."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindblip2.config import QFormerConfig
from mindblip2.models import rng
from mindblip2.models.qformer import CrossAttention

pytestmark = pytest.mark.usefixtures("pynative")
IMAGES, Q, D, H, P, K = 5, 6, 32, 4, 9, 8
OTHERS = np.array([1, 2, 0, 2, 2], np.int32)  # one picture comes three times, two never
RANDOM = np.random.default_rng(0)
CONFIG = QFormerConfig(
    hidden_size=D, num_attention_heads=H, encoder_width=D, attention_probs_dropout_prob=0.5
)


@pytest.fixture(scope="module")
def pynative():
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture(scope="module")
def cross():
    return CrossAttention(CONFIG, "float32").set_train(False)


def normal(*shape):
    return Tensor(RANDOM.standard_normal(shape, dtype=np.float32))


def gradients(memory_of, cross, rows=3 * IMAGES):
    """Value and gradients (query, key, value) of a weighted sum over the output; ``memory_of``: (key, value)
    → the memory to read."""
    query, key, value, weight = (
        Tensor(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))
        for seed, shape in enumerate([(rows, Q, D), (IMAGES, H, P, K), (IMAGES, H, P, K), (rows, Q, D)])
    )
    value, parts = ms.value_and_grad(lambda q, k, v: (cross(q, memory_of(k, v)) * weight).sum(), (0, 1, 2))(
        query, key, value
    )
    return [float(value), *(part.asnumpy() for part in parts)]


def copied(key, value):
    """The memory of own, other, own pictures, one after the other: what the four stand for."""
    others = Tensor(OTHERS)
    return ops.cat((key, key[others], key)), ops.cat((value, value[others], value))


def gathered(key, value, others=OTHERS):
    return key, value, ops.gather(key, Tensor(others), 0), ops.gather(value, Tensor(others), 0)


def test_a_memory_of_four_is_that_of_own_other_and_own_pictures(cross):
    expected = gradients(copied, cross)
    for ours, theirs in zip(gradients(gathered, cross), expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    wrong = gradients(lambda key, value: gathered(key, value, np.roll(OTHERS, 1)), cross)
    # the comparison can fail
    assert all(np.abs(ours - theirs).max() > 1e-3 for ours, theirs in zip(wrong, expected))


def test_rows_of_one_picture_meet_it_without_a_copy(cross):
    expected = gradients(
        lambda key, value: (ops.repeat_interleave(key, 3, 0), ops.repeat_interleave(value, 3, 0)), cross
    )
    for ours, theirs in zip(gradients(lambda key, value: (key, value), cross), expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert np.abs(gradients(copied, cross)[1] - expected[1]).max() > 1e-3


def test_own_and_other_pictures_draw_their_own_dropout():
    class Model(nn.Cell):
        def __init__(self):
            super().__init__()
            self.cross = CrossAttention(CONFIG, "float32")
            self.key = rng.bind(self)

    model = Model().set_train()
    query, key, value = normal(1, Q, D), normal(1, H, P, K), normal(1, H, P, K)
    same = model.cross(ops.tile(query, (3, 1, 1)), (key, value, key, value)).asnumpy()
    assert all(np.abs(same[a] - same[b]).max() > 1e-3 for a, b in ((0, 1), (1, 2), (0, 2)))
    model.set_train(False)
    same = model.cross(ops.tile(query, (3, 1, 1)), (key, value, key, value)).asnumpy()
    assert np.abs(same - same[:1]).max() < 1e-6  # the control: without dropout they are alike
