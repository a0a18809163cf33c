"""The noise-floor comparison: what it lets pass, what it must not, and that it cannot pass by accident."""

import json
import math

import numpy as np
import pytest

from mindblip2.parity.compare import (
    LOOK,
    PASS,
    Row,
    all_pass,
    compare,
    compare_all,
    first_bad,
    noise_ratio,
    table,
    write_json,
)

B, T, D = 4, 33, 64


def layer(x, weight, gelu="exact", eps=1e-12, mask=None):
    """Masked average, product, GELU, LayerNorm, all in the dtype of the input."""
    scores = x @ x.swapaxes(1, 2) / math.sqrt(D)
    p = (
        np.exp(scores - scores.max(-1, keepdims=True))
        if mask is None
        else np.exp(scores) * mask.astype(x.dtype)
    )
    x = (p / p.sum(-1, keepdims=True)) @ x @ weight
    inner = (
        erf(x / math.sqrt(2)) if gelu == "exact" else np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    )
    x = x * (0.5 + 0.5 * inner)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def erf(x):
    return np.vectorize(math.erf, otypes=[x.dtype])(x)


def summed_in_another_order(x, weight, **defect):
    """A faithful port: the same mathematics, with the channels in another order."""
    order = np.random.default_rng(7).permutation(D)
    return layer(x[..., order], weight[order], **defect)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    x, weight = (
        rng.normal(size=(B, T, D)).astype(np.float32),
        (rng.normal(size=(D, D)) / 8).astype(np.float32),
    )
    mask = (np.arange(T) < 20)[None, None]
    truth = layer(x.astype(np.float64), weight.astype(np.float64), mask=mask)
    torch = layer(x, weight, mask=mask)
    assert torch.dtype == np.float32 and truth.dtype == np.float64
    return x, weight, mask, torch, truth


def test_a_faithful_port_passes(case):
    x, weight, mask, torch, truth = case
    row = compare("port", summed_in_another_order(x, weight, mask=mask), torch, truth)
    assert row.verdict == "pass" and 0.3 < row.ratio < 3
    assert row.rel_frobenius < 1e-6 and row.cosine > 1 - 1e-12 and row.within_1000th > 0.99
    assert compare("torch", torch, torch, truth).ratio == pytest.approx(1)
    assert compare("truth", truth, torch, truth).ratio == 0


@pytest.mark.parametrize(
    "defect, at_least", [({"gelu": "tanh"}, 100), ({"eps": 1e-5}, 10), ({"mask": None}, 1e5)]
)
def test_a_defect_fails(case, defect, at_least):
    x, weight, mask, torch, truth = case
    row = compare("defect", summed_in_another_order(x, weight, **({"mask": mask} | defect)), torch, truth)
    assert row.verdict == "fail" and row.ratio > at_least


def test_half_precision_fails_against_float32_and_passes_against_itself(case):
    x, weight, mask, torch, truth = case
    half = summed_in_another_order(x, weight, mask=mask).astype(np.float16)
    assert compare("half", half, torch, truth).ratio > 100
    assert compare("half", half, torch.astype(np.float16), truth).verdict == "pass"


def test_one_bad_element_fails_though_the_cosine_looks_perfect():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=(512, 512))
    torch, ours = truth.astype(np.float32), truth.astype(np.float32)
    ours[3, 5] += 1e-2
    row = compare("one", ours, torch, truth)
    assert row.cosine > 1 - 1e-9 and row.within_1000th > 0.9999 and row.verdict == "fail"


def test_not_a_number_fails_and_a_broken_reference_raises():
    truth = np.ones(4) / 3
    torch = truth.astype(np.float32)
    for bad in (np.nan, np.inf):
        ours = torch.copy()
        ours[0] = bad
        assert compare("bad", ours, torch, truth).verdict == "fail"
        with pytest.raises(ValueError, match="reference itself is not finite"):
            noise_ratio(torch, ours, truth)
    assert Row("nan", math.nan, 0, 0, 1, 1).verdict == "fail"


def test_a_lucky_torch_does_not_fail_a_port():
    """Torch met the rounded truth exactly; the floor is then the rounding of the truth to float32."""
    truth = np.random.default_rng(2).normal(size=10_000)
    torch = truth.astype(np.float32)
    assert noise_ratio(torch, torch, truth) == pytest.approx(1)
    assert 1 < noise_ratio(np.nextafter(torch, np.float32(np.inf)), torch, truth) < PASS


def test_exact_tensors_must_be_met_exactly():
    zeros = np.zeros((3, 3))
    assert noise_ratio(zeros.astype(np.float32), zeros.astype(np.float32), zeros) == 0
    assert noise_ratio((zeros + 1e-30).astype(np.float32), zeros.astype(np.float32), zeros) == math.inf
    row = compare("zeros", zeros, zeros, zeros)
    assert (row.verdict, row.cosine, row.rel_frobenius, row.within_1000th) == ("pass", 1.0, 0.0, 1.0)


def test_a_zero_gradient_is_compared_with_torch_s_own_noise():
    """The key bias: its true gradient is 0 and every float32 program leaves some 1e-9 of its own."""
    rng = np.random.default_rng(3)
    truth, torch, ours = rng.normal(size=(3, 48)) * np.array([[1e-18], [5e-9], [7e-9]])
    assert compare("key.bias", ours.astype(np.float32), torch.astype(np.float32), truth).verdict == "pass"
    assert (
        compare("key.bias", (ours * 100).astype(np.float32), torch.astype(np.float32), truth).verdict
        == "fail"
    )


def test_shapes_never_broadcast():
    truth = np.ones((4, 1))
    with pytest.raises(ValueError, match=r"ours \(4, 4\)"):
        compare("x", np.ones((4, 4)), truth, truth)


@pytest.mark.parametrize(
    "ratio, verdict",
    [
        (0, "pass"),
        (PASS, "pass"),
        (PASS * 1.001, "look"),
        (LOOK, "look"),
        (LOOK * 1.001, "fail"),
        (math.inf, "fail"),
    ],
)
def test_verdicts(ratio, verdict):
    assert Row("x", ratio, 0, 0, 1, 1).verdict == verdict


def test_nothing_compared_is_no_pass():
    good, odd = Row("good", 1, 0, 0, 1, 1), Row("odd", 5, 0, 0, 1, 1)
    assert all_pass([good]) and not all_pass([good, odd]) and not all_pass([])
    assert first_bad([good, odd, good]) is odd and first_bad([good]) is None


def test_sets_must_have_the_same_names():
    x = {"a": np.ones(3), "b": np.ones(3)}
    assert [row.name for row in compare_all(x, x, x)] == ["a", "b"]
    with pytest.raises(ValueError, match=r"\['b'\]"):
        compare_all({"a": x["a"]}, x, x)


def test_table_and_json_hold_every_figure(tmp_path):
    rows = [
        Row("vit.block_00", 1.25, 1e-7, 2e-6, 1.0, 0.9987),
        Row("vit.block_01", math.inf, math.nan, 1.0, 0.5, 0.0),
    ]
    lines = table(rows).splitlines()
    assert len(lines) == 3 and lines[1].split() == [
        "pass",
        "1.25",
        "1.00e-07",
        "2.00e-06",
        "1.000000000",
        "99.87%",
        "vit.block_00",
    ]
    assert lines[2].startswith("fail") and all(
        line.endswith(name)
        for line, name in zip(lines, ("name", "vit.block_00", "vit.block_01"), strict=True)
    )
    write_json(tmp_path / "report.json", rows, {"torch": "2.13.0"})
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["pass"] is False and document["about"] == {"torch": "2.13.0"}
    assert document["rows"][0]["ratio"] == 1.25 and document["rows"][1]["ratio"] is None
    assert [row["verdict"] for row in document["rows"]] == ["pass", "fail"]
