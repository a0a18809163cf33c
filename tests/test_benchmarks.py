"""What the benchmarks make of their measurements; the measuring itself is full size and run by hand (make bench)."""
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def loaded(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def bench():
    return loaded("bench")


class Clock:
    """A side whose answers are known."""

    def __init__(self, *seconds):
        self.seconds, self.asked = list(seconds), []

    def ask(self, case):
        self.asked.append(case)
        return self.seconds.pop(0)


def test_sides_take_turns_in_every_round(bench):
    order = []
    sides = {name: SimpleNamespace(ask=lambda case, name=name: order.append((case, name)) or 1.0) for name in "ab"}
    bench.measure(sides, ["see 1", "see 4"], rounds=2)
    assert order == [(case, name) for case in ("see 1", "see 4") for _ in range(2) for name in "ab"]


def test_ratios_are_medians_of_the_ratios_within_a_round(bench):
    """Rounds of a machine that is slow for a while: the ratio of the medians would be 0.5, no round has seen that."""
    figures = bench.measure({"mindblip2": Clock(1.0, 4.0, 4.0), "torch": Clock(2.0, 8.0, 2.0)}, ["see 1"], 3)
    figures["gemm"] = {"mindblip2": [1.0], "torch": [1.0]}
    text = bench.report(figures, {"mindblip2": 4.4e9, "torch": 5e9}, SimpleNamespace(rounds=3), "")
    assert "| see 1 | 4000.0 | 2000.0 | 2.00 |" in text
    assert "mindblip2 4.40 GB, torch 5.00 GB" in text


def test_the_share_of_the_peak_is_that_of_the_measured_products(bench):
    second = bench.GEMM_FLOP / 1e12                             # 1 TFLOP/s
    slow = bench.VIT_FLOP * 4 / 0.5e12                          # half of it
    figures = {"gemm": {"mindblip2": [second], "torch": [2 * second]}, "vit 4": {"mindblip2": [slow], "torch": [slow]}}
    text = bench.report(figures, {"mindblip2": 1, "torch": 1}, SimpleNamespace(rounds=1), "")
    assert "1000 GFLOP/s" in text and "| 1.00 | 50% |" in text


def test_the_work_of_a_vit_is_that_of_its_weights(bench):
    """Every weight of a block multiplies and adds once per token; on top, attention over 257 tokens, once for the scores and once
    for the values."""
    from mindblip2.cells.vit import ViTBlock
    from mindblip2.config import Blip2Config
    from mindblip2.hub import no_init
    config = Blip2Config().vision_config
    with no_init():
        weights = sum(p.size for p in ViTBlock(config).get_parameters() if p.ndim == 2)
    tokens = (config.image_size // config.patch_size) ** 2 + 1
    work = config.num_hidden_layers * tokens * (weights + 2 * tokens * config.hidden_size)
    assert np.isclose(bench.VIT_FLOP, 2 * work, rtol=1e-6)


def test_a_worker_that_ends_is_an_error_that_says_how_to_look(bench):
    side = bench.Side("nonsense")
    with pytest.raises(RuntimeError, match="worker ended at 'gemm'.*worker.py by hand"):
        side.ask("gemm")


# ------------------------------------------------------------------------------------------------ re-ranking
def test_re_ranking_is_reported_as_pairs_per_second():
    figures = {"texts": {"mindblip2": [2.0, 4.0, 2.0], "torch": [6.0, 12.0, 2.0]}}
    text = loaded("retrieval").report(figures, 64, {"mindblip2": 4e9, "torch": 5e9})
    assert "| texts | 32.0 | 10.7 | 3.00 |" in text and "torch 5.00 GB" in text


def test_both_sides_re_rank_the_same_texts_of_the_stated_lengths():
    worker = loaded("worker")
    image, ids = worker.rerank_inputs(2, 50, 0)
    assert image.shape == (2, 257, 1408) and ids.shape == (50, 35)
    lengths = (ids != 0).sum(1)
    assert lengths.min() == 8 and lengths.max() == 20
    assert ((worker.rerank_inputs(2, 50, 35)[1] != 0).sum(1) == 35).all()
    assert (worker.rerank_inputs(2, 50, 0)[1] == ids).all()
