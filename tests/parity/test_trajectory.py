"""``--mode trajectory``: a run of some steps beside torch passes, a run with a defect does not, and the page
has its curves."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mindblip2.config.schema import ConfigError  # noqa: E402
from mindblip2.parity import trajectory  # noqa: E402
from mindblip2.parity.defects.mutations import defective  # noqa: E402
from mindblip2.parity.weights import Weights  # noqa: E402
from tests.parity.conftest import tiny_config  # noqa: E402

pytestmark = pytest.mark.usefixtures("pynative")
CONFIG = tiny_config().replace(
    qformer_config={"num_hidden_layers": 2}, vision_config={"num_hidden_layers": 1}
)
STEPS = 3


@pytest.fixture(scope="module")
def weights():
    return Weights(CONFIG)


@pytest.fixture(scope="module")
def references(weights, pynative):
    return trajectory.references(weights, CONFIG, STEPS)


def test_a_run_passes_and_leaves_curves(weights, references):
    ours = trajectory.our_run(trajectory.our_model(weights, CONFIG), references.given, references.negatives)
    rows = trajectory.judged(ours, references.torch32, references.truth)
    assert rows and all(row.verdict == "pass" for row in rows)
    curves = trajectory.curves(ours, references.torch32, references.truth)
    assert len(curves["Loss"]["lines"]["ours"]) == STEPS and {
        "Drift of self-attention",
        "Drift of temp",
    } <= set(curves)
    assert all(np.isfinite(line).all() for curve in curves.values() for line in curve["lines"].values())


def test_a_defect_is_noticed_in_losses_and_parameters(weights, references):
    model = trajectory.our_model(weights, CONFIG)
    with defective(model, "tanh GELU"):
        ours = trajectory.our_run(model, references.given, references.negatives)
    failed = {
        row.name
        for row in trajectory.judged(ours, references.torch32, references.truth)
        if row.verdict == "fail"
    }
    assert any("loss_itc" in name for name in failed) and any("attention" in name for name in failed)


def test_ties_are_no_parity(weights, monkeypatch):
    monkeypatch.setattr(trajectory, "TIE", 3.0)  # of cosines, which are never so far apart
    monkeypatch.setattr(trajectory, "SEEDS", range(1))
    with pytest.raises(ConfigError, match="two queries tie"):
        trajectory.references(weights, CONFIG, 1)
