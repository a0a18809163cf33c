"""AdamW and the learning rate against torch, step by step; clipping in the training step."""
import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from mindblip2.config import OptimizerConfig, ScheduleConfig
from mindblip2.trainer import loop
from mindblip2.trainer.optim import AdamW, decayed
from mindblip2.trainer.schedule import learning_rate

SHAPES = {"proj.weight": (5, 3), "proj.bias": (5,), "temp": (), "query_tokens": (1, 4, 3), "norm.gamma": (3,)}
RATES = (3e-2, 1e-2, 5e-3, 2e-3, 1e-3)


@pytest.fixture(autouse=True)
def pynative():
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=mode)


@pytest.fixture
def arrays():
    """Start values, and per step one gradient each; the gradients span six orders of magnitude, so that epsilon matters."""
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    grads = [{name: (rng.normal(size=shape) * 10.0 ** rng.integers(-7, 0, shape)).astype(np.float32)
              for name, shape in SHAPES.items()} for _ in RATES]
    return start, grads


def ours(start, grads, **settings):
    parameters = [Parameter(Tensor(value), name=name) for name, value in start.items()]
    optimizer = AdamW(parameters, OptimizerConfig(**settings))
    for rate, gradient in zip(RATES, grads):
        optimizer(tuple(Tensor(gradient[p.name]) for p in parameters), Tensor(rate, ms.float32))
    return {p.name: p.asnumpy() for p in parameters}


def torchs(start, grads, beta2=0.98, eps=1e-8, weight_decay=0.05, vectors_decay=False):
    """torch's own in float64, with LAVIS's two groups."""
    torch = pytest.importorskip("torch")
    values = {name: torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for name, value in start.items()}
    plain = [] if vectors_decay else [v for name, v in values.items() if v.ndim == 1 or name.endswith("bias")]
    rest = [v for v in values.values() if not any(v is p for p in plain)]
    optimizer = torch.optim.AdamW([{"params": rest, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
                                  betas=(0.9, beta2), eps=eps)
    for rate, gradient in zip(RATES, grads):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, value in values.items():
            value.grad = torch.tensor(gradient[name], dtype=torch.float64)
        optimizer.step()
    return {name: value.detach().numpy() for name, value in values.items()}


def gap(a, b):
    return max(np.abs(a[name] - b[name]).max() for name in a)


@pytest.mark.parametrize("settings", [{}, {"beta2": 0.999}, {"weight_decay": 0.5}, {"eps": 1e-3}], ids=str)
def test_updates_are_torchs(arrays, settings):
    assert gap(ours(*arrays, **settings), torchs(*arrays, **settings)) < 1e-6


@pytest.mark.parametrize("wrong", [{"beta2": 0.981}, {"weight_decay": 0.051}, {"eps": 1.1e-3}, {"vectors_decay": True}], ids=str)
def test_the_comparison_notices_another_optimizer(arrays, wrong):
    eps = {"eps": 1e-3} if "eps" in wrong else {}
    assert gap(ours(*arrays, **eps), torchs(*arrays, **{**eps, **wrong})) > 1e-6


def test_vectors_and_biases_are_not_decayed_and_temp_is():
    """The rule of LAVIS's blip2.py (one dimension or ".bias"); its release 1.0.2 still left the 0-d temp undecayed."""
    names = {name for name, shape in SHAPES.items() if decayed(Parameter(Tensor(np.zeros(shape, np.float32)), name=name))}
    assert names == {"proj.weight", "temp", "query_tokens"}


# ------------------------------------------------------------------------------------------------ learning rate
def test_the_rate_climbs_straight_and_falls_along_half_a_cosine():
    config = ScheduleConfig(learning_rate=1e-3, lr_end=1e-5, warmup_lr_init=1e-5, warmup_steps=10)
    rates = [learning_rate(config, step, 110) for step in range(110)]
    assert rates[0] == 1e-5 and rates[10] == 1e-3 and math.isclose(rates[5], (1e-5 + 1e-3) / 2)
    assert math.isclose(rates[60], (1e-3 + 1e-5) / 2) and rates[-1] < 1.3e-5
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_the_cosine_is_torchs():
    torch = pytest.importorskip("torch")
    config = ScheduleConfig(learning_rate=1e-3, lr_end=1e-5, warmup_steps=0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, 1e-5)
    for step in range(50):
        assert math.isclose(learning_rate(config, step, 50), optimizer.param_groups[0]["lr"], rel_tol=1e-6)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("total", [1, 3])
def test_a_run_shorter_than_the_warm_up_has_a_rate(total):
    config = ScheduleConfig(learning_rate=1e-3, lr_end=1e-5, warmup_lr_init=1e-5, warmup_steps=100)
    rates = [learning_rate(config, step, total) for step in range(total + 2)]
    assert all(1e-5 <= rate <= 1e-3 for rate in rates)


# ------------------------------------------------------------------------------------------------ the training step
class Slope(nn.Cell):
    """A model whose loss has the gradient (3, 4) · ``scale`` for its one matrix."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros((1, 2), np.float32)), name="weight")
        self.temp = Parameter(Tensor(0.07, ms.float32), name="temp", requires_grad=False)
        self.slope = Tensor(np.array([[3.0, 4.0]], np.float32) * scale)

    def construct(self, image, input_ids, image_id, negatives, all_losses):
        loss = (self.weight * self.slope).sum() + image.sum()
        return loss, loss, loss, loss


def stepped(max_grad_norm, scale=1.0):
    """The model's gradient as the optimizer's first moment holds it, and the reported norm."""
    model = Slope(scale)
    step = loop.TrainStep(model, OptimizerConfig(max_grad_norm=max_grad_norm, weight_decay=0.0))
    *_, norm = step(Tensor(np.zeros((1, 1), np.float32)), None, None, Tensor(1e-3, ms.float32))
    return step.optimizer.moment1[0].asnumpy() / 0.1, float(norm)


@pytest.mark.parametrize("limit, kept", [(None, 1.0), (10.0, 1.0), (1.0, 0.2), (2.5, 0.5)])
def test_gradients_are_clipped_by_their_common_norm(limit, kept):
    gradient, norm = stepped(limit)
    assert norm == pytest.approx(5.0)          # reported before clipping
    assert gradient == pytest.approx(np.array([[3.0, 4.0]]) * kept, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(tmp_path, value):
    from mindblip2.config import load_config
    config = load_config("blip2_digits", {"runner_config.log_every": 1})
    image = np.zeros((1, 1), np.float32)
    batches = [{"image": image, "input_ids": np.zeros((1, 1), np.int32), "image_id": np.zeros(1, np.int32)}] * 3
    assert len(loop.fit(Slope(), batches, 3, config, tmp_path / "good")) == 3  # control
    batches[1] = {**batches[1], "image": image + value}
    with pytest.raises(FloatingPointError, match="step 2: loss_itc is (nan|inf); lower the learning rate"):
        loop.fit(Slope(), batches, 3, config, tmp_path)
    assert len((tmp_path / "log" / "train.jsonl").read_text().splitlines()) == 1  # what was logged before is kept
