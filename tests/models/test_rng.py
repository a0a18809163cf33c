"""Draws: the right share, independent of each other, a function of the key, and the same in both modes."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from mindblip2.config import Blip2Config
from mindblip2.models import rng
from mindblip2.models.blip2_qformer import Blip2Qformer

SHAPES = [(5, 1000), (7, 3, 20_000)]  # within the table, and beyond it


class Two(nn.Cell):
    def __init__(self, p=0.3):
        super().__init__()
        self.first, self.second = rng.Dropout(p), rng.Dropout(p)
        self.key = rng.bind(self)
        self._words = (self.key.words,)

    def construct(self, x):
        rng.advance(self._words[0])
        return self.first(x), self.second(x)


def drawn(key, site, shape):
    return rng.uniform(key.words, site, shape).asnumpy()


@pytest.fixture
def key():
    key = rng.RngState()
    key.set(42, 0)
    return key


@pytest.mark.parametrize("shape", SHAPES)
def test_draws_are_uniform(key, shape):
    values = drawn(key, 3, shape)
    assert values.dtype == np.float32 and values.shape == shape and values.min() >= 0 and values.max() < 1
    counts = np.histogram(values, 20, (0, 1))[0] / values.size
    assert np.abs(counts - 0.05).max() < 5 * np.sqrt(0.05 / values.size)


@pytest.mark.parametrize("shape", SHAPES)
def test_draws_of_different_places_steps_ranks_and_neighbours_do_not_correlate(key, shape):
    first = drawn(key, 1, shape).ravel()
    others = [drawn(key, 2, shape).ravel(), np.roll(first, 1), np.roll(first, rng.WIDTH)]
    for seeds in ((42, 1), (43, 0), (42, 0, 1)):
        key.set(*seeds)
        others.append(drawn(key, 1, shape).ravel())
    rng.advance(key.words)
    others.append(drawn(key, 1, shape).ravel())
    limit = 5 / np.sqrt(first.size)
    for other in others[:2] + others[3:] if first.size <= rng.WIDTH else others:
        assert abs(np.corrcoef(first, other)[0, 1]) < limit
        both = np.mean((first < 0.1) & (other < 0.1))
        assert abs(both - 0.01) < 6 * np.sqrt(0.01 / first.size)
    assert np.corrcoef(first, first)[0, 1] > limit  # the check can fail


def test_the_same_key_gives_the_same_draws_in_both_modes():
    seen = []
    for mode in (ms.PYNATIVE_MODE, ms.GRAPH_MODE, ms.GRAPH_MODE):
        before = ms.get_context("mode")
        ms.set_context(mode=mode)
        try:
            cell, out = Two().set_train(), []
            cell.key.set(7, len(seen) // 2)
            for _ in range(3):
                out += [part.asnumpy() for part in cell(Tensor(np.ones((4, 50), np.float32)))]
            seen.append(np.stack(out))
        finally:
            ms.set_context(mode=before)
    assert np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[0], seen[2])
    assert len({part.tobytes() for part in seen[0]}) == 6  # two places, three steps


def test_dropout_keeps_the_mean_and_does_nothing_in_evaluation():
    cell, ones = Two(), Tensor(np.ones(40_000, np.float32))
    assert all((part.asnumpy() == 1).all() for part in cell.set_train(False)(ones))
    first = cell.set_train()(ones)[0].asnumpy()
    assert set(np.unique(first)) == {0, np.float32(1 / 0.7)} and abs(first.mean() - 1) < 0.02


def test_the_gradient_goes_through_what_was_kept():
    cell = Two().set_train()

    def kept(x):
        return cell(x)[0].sum()

    value, slope = ops.value_and_grad(kept)(Tensor(np.ones(100, np.float32)))
    assert np.isclose(slope.asnumpy().sum(), value.asnumpy()) and set(np.unique(slope.asnumpy())) == {
        0,
        np.float32(1 / 0.7),
    }


def test_without_a_key_training_says_what_to_do():
    with pytest.raises(RuntimeError, match=r"rng.bind\(model\)"):
        rng.Dropout(0.5).set_train()(Tensor(np.ones(3, np.float32)))


def test_drop_path_takes_or_leaves_whole_samples():
    cell = rng.DropPath(0.5)
    rng.bind(cell)
    out = cell.set_train()(Tensor(np.ones((64, 3, 5), np.float32))).asnumpy()
    rows = out.reshape(64, -1)
    assert (rows == rows[:, :1]).all() and set(np.unique(rows)) == {0, 2} and 15 < (rows[:, 0] > 0).sum() < 49


def test_a_blocks_two_branches_are_dropped_apart():
    from mindblip2.config import ViTConfig
    from mindblip2.models.vit import ViTBlock

    block = ViTBlock(ViTConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8), drop_path=0.5)
    rng.bind(block)
    block.set_train()
    ones = Tensor(np.ones((64, 2, 8), np.float32))
    first, second = (drop(ones).asnumpy()[:, 0, 0] for drop in (block.attn_drop, block.mlp_drop))
    assert not np.array_equal(first, second) and np.array_equal(
        first, block.attn_drop(ones).asnumpy()[:, 0, 0]
    )


def tiny_model():
    ms.set_seed(1)
    return Blip2Qformer(
        Blip2Config(
            max_txt_len=8,
            vision_config=dict(
                image_size=16,
                patch_size=8,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
            ),
            qformer_config=dict(
                vocab_size=30,
                bos_token_id=29,
                sep_token_id=3,
                hidden_size=16,
                num_hidden_layers=2,
                query_length=4,
                num_attention_heads=2,
                intermediate_size=32,
                encoder_width=16,
                head_embed_dim=8,
                max_position_embeddings=16,
            ),
        )
    )


def test_a_models_losses_depend_on_the_key_only():
    model, numpy_rng = tiny_model().set_train(), np.random.default_rng(0)
    image = Tensor(numpy_rng.standard_normal((6, 3, 16, 16)).astype(np.float32))
    ids = Tensor(numpy_rng.integers(4, 29, (6, 8)).astype(np.int32))

    def losses(*seeds):
        model.noise.set(*seeds)
        return [float(part) for part in model(image, ids, return_tuple=True)]

    first, second = losses(1, 1), [float(part) for part in model(image, ids, return_tuple=True)]
    assert first == losses(1, 1) != second and first != losses(1, 2)
    model.set_train(False)
    assert losses(1, 1)[1] == losses(1, 2)[1]  # ITC draws nothing but dropout
    assert "noise_key" not in model.parameters_dict()
