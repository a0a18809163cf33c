"""AdamW and the learning rate against torch and LAVIS, step by step."""

import math
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mindblip2.config import OptimizerConfig, ScheduleConfig
from mindblip2.trainer.lr_schedule import learning_rate
from mindblip2.trainer.optimizer import AdamW, decayed, layer_scales

SHAPES = {"proj.weight": (5, 3), "proj.bias": (5,), "temp": (), "query_tokens": (1, 4, 3), "norm.gamma": (3,)}
REFERENCE = Path(__file__).resolve().parents[1] / "reference" / "processors"
RATES = (3e-2, 1e-2, 5e-3, 2e-3, 1e-3)


@pytest.fixture(autouse=True)
def pynative():
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield
    ms.set_context(mode=mode)


@pytest.fixture
def arrays():
    """Start values, and per step one gradient each; the gradients span six orders of magnitude, so that
    epsilon matters."""
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    grads = [
        {
            name: (rng.normal(size=shape) * 10.0 ** rng.integers(-7, 0, shape)).astype(np.float32)
            for name, shape in SHAPES.items()
        }
        for _ in RATES
    ]
    return start, grads


def ours(start, grads, scales=None, factor=0.5, **settings):
    parameters = [Parameter(Tensor(value), name=name) for name, value in start.items()]
    optimizer = AdamW(parameters, OptimizerConfig(**settings), scales)
    for rate, gradient in zip(RATES, grads):
        optimizer(tuple(Tensor(gradient[p.name] / np.float32(factor)) for p in parameters), rate, factor)
    return {p.name: p.asnumpy() for p in parameters}


def torchs(start, grads, beta2=0.98, eps=1e-8, weight_decay=0.05, vectors_decay=False, rates=RATES):
    """torch's own in float64, with LAVIS's two groups."""
    torch = pytest.importorskip("torch")
    values = {
        name: torch.nn.Parameter(torch.tensor(value, dtype=torch.float64)) for name, value in start.items()
    }
    plain = [] if vectors_decay else [v for name, v in values.items() if v.ndim == 1 or name.endswith("bias")]
    rest = [v for v in values.values() if not any(v is p for p in plain)]
    optimizer = torch.optim.AdamW(
        [{"params": rest, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}],
        betas=(0.9, beta2),
        eps=eps,
    )
    for rate, gradient in zip(rates, grads):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, value in values.items():
            value.grad = torch.tensor(gradient[name], dtype=torch.float64)
        optimizer.step()
    return {name: value.detach().numpy() for name, value in values.items()}


@pytest.mark.parametrize("factor", [0.25, 1.0])
def test_the_factor_multiplies_the_gradients(arrays, factor):
    one, half = ours(*arrays, factor=factor), ours(*arrays)
    assert all(np.array_equal(one[name], half[name]) for name in SHAPES)
    # control
    assert (
        gap(
            ours(arrays[0], [{name: 3 * g for name, g in step.items()} for step in arrays[1]], factor=factor),
            half,
        )
        > 1e-6
    )


def gap(a, b):
    return max(np.abs(a[name] - b[name]).max() for name in a)


@pytest.mark.parametrize("settings", [{}, {"beta2": 0.999}, {"weight_decay": 0.5}, {"eps": 1e-3}], ids=str)
def test_updates_are_torchs(arrays, settings):
    assert gap(ours(*arrays, **settings), torchs(*arrays, **settings)) < 1e-6


@pytest.mark.parametrize(
    "wrong", [{"beta2": 0.981}, {"weight_decay": 0.051}, {"eps": 1.1e-3}, {"vectors_decay": True}], ids=str
)
def test_the_comparison_notices_another_optimizer(arrays, wrong):
    eps = {"eps": 1e-3} if "eps" in wrong else {}
    assert gap(ours(*arrays, **eps), torchs(*arrays, **{**eps, **wrong})) > 1e-6


def test_vectors_and_biases_are_not_decayed_and_temp_is():
    """The rule of LAVIS's blip2.py (one dimension or ".bias"); its release 1.0.2 still left the 0-d temp
    undecayed."""
    names = {
        name
        for name, shape in SHAPES.items()
        if decayed(Parameter(Tensor(np.zeros(shape, np.float32)), name=name))
    }
    assert names == {"proj.weight", "temp", "query_tokens"}


def test_a_scaled_rate_scales_update_and_decay(arrays):
    """With a tenth of the rate for one parameter it goes where it would go in a run at a tenth of all
    rates."""
    start, grads = arrays
    scales = [0.1 if name == "proj.weight" else 1.0 for name in SHAPES]
    scaled, plain = ours(start, grads, scales), ours(start, grads)
    slow = torchs(start, grads, rates=[rate / 10 for rate in RATES])
    assert np.abs(scaled["proj.weight"] - slow["proj.weight"]).max() < 1e-6
    assert np.abs(plain["proj.weight"] - slow["proj.weight"]).max() > 1e-3
    assert all(np.array_equal(scaled[name], plain[name]) for name in SHAPES if name != "proj.weight")


def test_layer_decay_falls_from_the_vits_end_to_its_begin():
    names = [
        "vit.pos_embed",
        "vit.patch_embed.proj.weight",
        "vit.blocks.0.norm1.gamma",
        "vit.blocks.2.mlp.up.weight",
        "ln_vision.gamma",
        "qformer.query_tokens",
    ]
    parameters = [Parameter(Tensor(np.zeros(1, np.float32)), name=name) for name in names]
    assert layer_scales(parameters, 0.5, 3) == [0.0625, 0.0625, 0.125, 0.5, 1.0, 1.0]


# ------------------------------------------------------------------------------------------------ learning ra
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


def test_the_rate_per_epoch_is_lavis_s():
    table = np.load(REFERENCE / "lr_schedule.npz")["cosine"]  # (epochs, steps per epoch)
    config = ScheduleConfig(
        type="cosine_epoch", learning_rate=1e-4, lr_end=1e-5, warmup_lr_init=1e-6, warmup_steps=5
    )
    found = np.array([learning_rate(config, step, table.size, table.shape[1]) for step in range(table.size)])
    np.testing.assert_allclose(found.reshape(table.shape), table, rtol=1e-12)
    per_step = np.array(
        [learning_rate(config.replace(type="cosine"), step, table.size) for step in range(table.size)]
    )
    assert np.abs(per_step.reshape(table.shape) - table).max() > 1e-6  # the other form is not the same
