"""One update: clipping, accumulation, the loss scale, and numbers that are not finite."""

import math
from types import SimpleNamespace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from mindblip2.config import OptimizerConfig
from mindblip2.trainer.tasks.pretrain import recompute
from mindblip2.trainer.train_step import FIRST_SCALE, GROWTH_STEPS, LossScale, TrainStep
from tests.trainer.small import Batches, small_model


class Slope(nn.Cell):
    """A model whose loss has the gradient (3, 4) · image for its one matrix."""

    def __init__(self):
        super().__init__()
        self.vit = nn.Identity()
        self.weight = Parameter(Tensor(np.zeros((1, 2), np.float32)), name="weight")
        self.temp = Parameter(Tensor(0.07, ms.float32), name="temp", requires_grad=False)
        self.slope = Tensor(np.array([[3.0, 4.0]], np.float32))
        self.config = SimpleNamespace(compute_dtype="float32")
        self.vit.by_blocks = lambda image: image

    def stage1(self, picture, input_ids, image_id, negatives):
        loss = (self.weight * self.slope).sum() * picture.sum() + (picture.sum() - picture.sum())
        return loss, (loss, loss, loss), (loss, loss, loss)


def batch(value=1.0):
    return {"image": np.full((1, 1), value, np.float32), "input_ids": np.zeros((1, 1), np.int32)}


def stepped(batches, **settings):
    """The model's gradient as the optimizer's first moment holds it, and what the step returned."""
    step = TrainStep(Slope(), OptimizerConfig(weight_decay=0.0, **settings))
    numbers = step(batches, 1e-3)
    return step.optimizer.update.moment1[0][0].asnumpy() / 0.1, numbers


@pytest.mark.parametrize("limit, kept", [(None, 1.0), (10.0, 1.0), (1.0, 0.2), (2.5, 0.5)])
def test_gradients_are_clipped_by_their_common_norm(limit, kept):
    gradient, numbers = stepped([batch()], max_grad_norm=limit)
    assert numbers["grad_norm"] == pytest.approx(5.0)  # reported before clipping
    assert gradient == pytest.approx(np.array([[3.0, 4.0]]) * kept, rel=1e-5)


def test_gradients_of_several_batches_are_averaged_however_many_there_are():
    for values in ([1.0, 3.0], [2.0, 2.0, 5.0], [7.0]):
        gradient, numbers = stepped([batch(value) for value in values])
        assert gradient == pytest.approx(np.array([[3.0, 4.0]]) * np.mean(values), rel=1e-5)
        assert numbers["grad_norm"] == pytest.approx(5 * np.mean(values), rel=1e-5)


# ------------------------------------------------------------------------------------------------ not finite
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_named(value):
    with pytest.raises(FloatingPointError, match="loss_itc is nan; lower the learning rate"):
        stepped([batch(value)])


def test_a_gradient_that_is_not_finite_is_named_and_nothing_is_updated():
    step = TrainStep(Slope(), OptimizerConfig())
    with pytest.raises(FloatingPointError, match="the gradient of weight is not finite"):
        step([batch(3e38)], 1e-3)
    assert (step.model.weight.asnumpy() == 0).all() and float(step.optimizer.update.step) == 0
    assert step([batch()], 1e-3)["skipped"] is False and (step.model.weight.asnumpy() != 0).all()  # control


# ------------------------------------------------------------------------------------------------ the loss sc
def test_an_overflow_skips_the_update_and_halves_the_scale():
    step = TrainStep(Slope(), OptimizerConfig(loss_scale=2.0**8))
    assert step([batch(1e37)], 1e-3)["skipped"] is True
    assert (
        step.scale.value == 2.0**7
        and (step.model.weight.asnumpy() == 0).all()
        and float(step.optimizer.update.step) == 0
    )
    assert step([batch(1.0)], 1e-3)["skipped"] is False and (step.model.weight.asnumpy() != 0).all()


def test_an_overflow_that_no_scale_mends_is_an_error():
    step = TrainStep(Slope(), OptimizerConfig(loss_scale=4.0))
    with pytest.raises(FloatingPointError, match="the gradient of (weight|all parameters together) is not"):
        for _ in range(40):
            step([batch(3e38)], 1e-3)


def test_the_scale_grows_after_enough_good_steps_as_torchs():
    torch = pytest.importorskip("torch")
    theirs = torch.amp.GradScaler("cpu")
    ours, weight = LossScale(FIRST_SCALE), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for finite in [True] * 3 + [False] + [True] * (2 * GROWTH_STEPS + 1) + [False, False]:
        weight.grad = None
        (theirs.scale(weight.sum() * (1.0 if finite else math.inf))).backward()
        theirs.step(optimizer)
        theirs.update()
        ours.update(finite)
        assert ours.value == theirs.get_scale()


def test_the_scale_does_not_change_the_numbers():
    losses = {}
    for scale in (None, 2.0**16, 3.0):
        model = small_model().set_train()
        step = TrainStep(model, OptimizerConfig(loss_scale=scale))
        for number, one in enumerate(Batches().epoch(0)):
            model.noise.set(1, number)
            losses.setdefault(scale, []).append(step([one], 1e-2)["loss"])
    assert losses[2.0**16] == losses[None]  # a power of two: the same bits
    assert losses[3.0] == pytest.approx(losses[None], abs=1e-4) and losses[None][0] != losses[None][2]


# ------------------------------------------------------------------------------------------------ what is fro
def test_what_is_frozen_stays_as_it_is_and_in_evaluation_mode():
    model = small_model(
        freeze_vision=True, frozen=["qformer.embeddings.*", "qformer.encoder.layers.0.*"]
    ).set_train()
    before = {name: p.asnumpy().copy() for name, p in model.parameters_dict().items()}
    step = TrainStep(model, OptimizerConfig())
    step([next(Batches().epoch(0))], 1e-2)
    changed = {
        name for name, p in model.parameters_dict().items() if not np.array_equal(p.asnumpy(), before[name])
    }
    frozen = ("vit.", "qformer.embeddings.", "qformer.encoder.layers.0.")
    assert not [name for name in changed if name.startswith(frozen)]
    assert "qformer.encoder.layers.1.attention.query.weight" in changed and "ln_vision.gamma" in changed
    modes = {name: cell.training for name, cell in model.cells_and_names()}
    assert (
        not modes["vit"]
        and not modes["vit.blocks.1.attn_drop"]
        and not modes["qformer.encoder.layers.0.text_dropout"]
    )
    assert modes["qformer.encoder.layers.1.text_dropout"] and modes["qformer"]


def test_a_pattern_that_freezes_nothing_is_an_error():
    from mindblip2.config.schema import ConfigError

    with pytest.raises(ConfigError, match="no parameter matches 'vision.*'"):
        small_model(frozen=["vision.*"])


@pytest.fixture
def graph_mode():
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=mode)


def test_recomputing_in_pynative_is_refused():
    from mindblip2.config.schema import ConfigError

    with pytest.raises(ConfigError, match="recompute needs graph mode"):
        recompute(small_model())


@pytest.mark.slow  # two compilations of the training graph
def test_recomputed_parts_give_the_same_numbers(graph_mode):
    values = []
    for again in (False, True):
        model = small_model().set_train()
        if again:
            recompute(model)
        step = TrainStep(model, OptimizerConfig())
        model.noise.set(5, 0)
        values.append((step([next(Batches().epoch(0))], 1e-2)["grad_norm"], model.temp.asnumpy().item()))
    assert values[0] == pytest.approx(values[1], rel=1e-6)
