"""``--mode trajectory``: a run of some steps beside torch passes, a run with a defect does not, and the page has its curves."""

import argparse

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from parity import trajectory  # noqa: E402
from parity.mutations import defective  # noqa: E402

from .conftest import tiny_config  # noqa: E402

pytestmark = pytest.mark.usefixtures("pynative")


@pytest.fixture
def options(tmp_path):
    small = tiny_config().replace(qformer_config={"num_hidden_layers": 2}, vision_config={"num_hidden_layers": 1})
    config = small.save_pretrained(tmp_path)
    return argparse.Namespace(config=str(config), blocks=None, weights=None, vit_path=None, ckpt=None, seed=20230, steps=4)


def test_a_run_passes_and_leaves_curves(options):
    rows, more = trajectory.rows_of(options)
    assert rows and all(row.verdict == "pass" for row in rows)
    curves = more["curves"]
    assert len(curves["Loss"]["lines"]["ours"]) == 4 and {"Drift of self-attention", "Drift of temp"} <= set(curves)
    assert all(np.isfinite(line).all() for curve in curves.values() for line in curve["lines"].values())


def test_a_defect_is_noticed_in_losses_and_parameters(options, monkeypatch):
    run = trajectory.our_run

    def wrong(model, *rest):
        with defective(model, "tanh GELU"):
            return run(model, *rest)
    monkeypatch.setattr(trajectory, "our_run", wrong)
    failed = {row.name for row in trajectory.rows_of(options)[0] if row.verdict == "fail"}
    assert any("loss_itc" in name for name in failed) and any("attention" in name for name in failed)


def test_ties_are_no_parity(options, monkeypatch):
    from mindblip2.sections import ConfigError
    monkeypatch.setattr(trajectory, "TIE", 3.0)     # of cosines, which are never so far apart
    monkeypatch.setattr(trajectory, "SEEDS", range(1))
    with pytest.raises(ConfigError, match="two queries tie"):
        trajectory.rows_of(options)
