"""Ours against the twin by the noise floor, at tiny size: layer by layer, forward and backward, chained and
isolated."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mindblip2.parity.candidate.chained import batch  # noqa: E402
from mindblip2.parity.compare import Row, failing, first_bad, not_passing, table  # noqa: E402
from mindblip2.parity.model_triple import FEW, Case, judge, run_ours  # noqa: E402
from mindblip2.parity.reference.outputs import departures, run_theirs, twin_config  # noqa: E402
from mindblip2.parity.suite import CHAINED  # noqa: E402
from tests.parity.conftest import tiny_config  # noqa: E402

pytestmark = pytest.mark.usefixtures("pynative")


@pytest.fixture(scope="module")
def rows(suite):
    return suite.rows()


def flat(rows, chained):
    return [row for name, found in rows.items() for row in found if name.startswith(CHAINED) == chained]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_exchanged_negatives_are_others(count):
    """With two samples that have each other, a defect that exchanges them went unseen: a blind try found
    it."""
    given = batch(np.zeros((count, 3, 4, 4), np.float32), np.zeros((count, 5), int))
    assert not np.array_equal(given["image_idx"], given["text_idx"])
    assert all(
        index.max() < count and (index != np.arange(count)).any()
        for index in (given["image_idx"], given["text_idx"])
    )


def test_the_networks_do_not_part(rows):
    """Chained: the first activation that differs would be named."""
    chained = flat(rows, True)
    assert first_bad(chained) is None, first_bad(chained)
    assert len(chained) > 200


def test_every_part_passes_on_the_truth_s_input(rows):
    """Isolated: outputs, and gradients by inputs and weights. Of so many rows one in a hundred may deserve a
    look on some processor; none may fail."""
    isolated = flat(rows, False)
    odd = [row for row in isolated if row.verdict != "pass"]
    assert len(odd) < len(isolated) / 100 and all(row.verdict == "look" for row in odd), table(odd)
    assert len(isolated) > 700 and sum(" d " in row.name for row in isolated) > 600


def test_nothing_is_compared_by_luck(rows):
    """Half of all ratios are near 1, as for a port that rounds like torch; a zero would be a comparison with
    itself."""
    ratios = [row.ratio for found in rows.values() for row in found if not row.name.startswith("negatives")]
    assert 0.5 < np.median(ratios) < 2
    assert sum(ratio == 0 for ratio in ratios) < 0.2 * len(ratios)


def test_the_gradient_of_every_parameter_is_compared(suite, model):
    compared = {name for case in suite.cases if case.backward for name in case.weights}
    assert compared == {name for name, _ in model.parameters_and_names()}


def test_every_cell_has_a_twin(suite, model):
    """Each cell is compared by itself, or is below one that is."""
    from mindblip2.parity.activation_hooks import APART

    compared = {case.name for case in suite.cases} | set(suite.paths)
    covered = {
        "qformer.memory": "memory",
        "qformer.embeddings": "embed.text",
        "qformer.embedding_norm": "embed.text",
        "qformer.encoder": "see",
        "qformer": "see",
        "vit.patch_embed": "vit.patch_embed",
    }
    for path, cell in model.cells_and_names():
        if (
            not path
            or not list(cell.get_parameters())
            or path.endswith(APART)
            or "List" in type(cell).__name__
        ):
            continue
        parts = path.split(".")
        above = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        assert above & compared or any(covered.get(name) in compared for name in above), path


def test_few_elements_are_judged_together():
    """Two numbers that torch happened to meet would fail any port; beside others they do not."""
    rng = np.random.default_rng(0)
    truth = {"large": rng.normal(size=500), "a": rng.normal(size=2), "b": 1e-3 * rng.normal(size=30)}
    torch32 = {name: value.astype(np.float32) for name, value in truth.items()}
    ours = {name: np.nextafter(value, np.float32(np.inf)) for name, value in torch32.items()}
    rows = judge("case", ours, torch32, truth)
    assert [row.name for row in rows] == ["case large", "case a b"] and all(
        row.verdict == "pass" for row in rows
    )
    ours["b"] = ours["b"] * np.float32(1 + 1e-4)  # small numbers count as much as large ones
    assert [row.verdict for row in judge("case", ours, torch32, truth)] == ["pass", "fail"]
    assert truth["b"].size < FEW


def test_inputs_that_are_fixed_have_no_gradient(suite):
    case = next(case for case in suite.cases if case.name == "stage1")
    assert case.differentiated == [] and case.backward and "image" in case.inputs


def test_a_case_runs_on_both_sides(suite):
    case = Case(
        "product",
        lambda twin, x: x @ twin.itm_head.weight.T,
        lambda model, x: x @ model.itm_head.weight.T,
        {"x": np.ones((3, 48), np.float32)},
        ("itm_head.weight",),
        backward=True,
    )
    ours, theirs = run_ours(case, suite.nets.ours), run_theirs(case, suite.nets.truth)
    assert list(ours) == list(theirs) == ["", "d x", "d itm_head.weight"]
    assert theirs[""].dtype == np.float64 and ours["d x"].shape == (3, 48)


def test_constants_that_are_not_lavis_s_are_named():
    """A wrong epsilon in a configuration is the reference's too, so a run says that equality with LAVIS is
    not given."""
    config = tiny_config(ln_vision_eps=1e-3).replace(vision_config={"layer_norm_eps": 1e-3})
    assert departures(config) == {
        "vit_eps": ("vision_config.layer_norm_eps", 1e-3),
        "ln_vision_eps": ("ln_vision_eps", 1e-3),
    }
    twin = twin_config(config)
    assert (twin.vit_eps, twin.ln_vision_eps, twin.qformer_eps) == (1e-3, 1e-3, 1e-12)
    assert departures(tiny_config()) == {}
    twin = twin_config(tiny_config())
    assert (twin.vit_eps, twin.ln_vision_eps, twin.qformer_eps) == (1e-6, 1e-5, 1e-12)
    assert (twin.vit_depth, twin.width, twin.queries, twin.embed) == (3, 48, 8, 32)
    assert twin_config(tiny_config().replace(qformer_config={"bos_token_id": 7})).bos == 7


def test_verdicts_of_a_set():
    good, odd, bad = (Row("x", ratio, 0, 0, 1, 1) for ratio in (1, 5, 50))
    rows = {"good": [good], "odd": [good, odd], "bad": [good, bad], "nothing": []}
    # nothing compared is no pass
    assert failing(rows) == {"bad"} and not_passing(rows) == {"odd", "bad", "nothing"}


def test_problems_of_a_stacked_case_are_compared_together(suite):
    """Values and small gradients side by side, large gradients added up."""
    x = np.random.default_rng(0).normal(size=(3, 5, 48)).astype(np.float32)
    case = Case(
        "heads",
        lambda twin, x: twin.itm_head(x),
        lambda model, x: model.itm_head(x),
        {"x": x},
        ("itm_head.weight", "itm_head.bias"),
        backward=True,
        fixed=("x",),
        stacked=("x",),
    )
    ours, theirs = run_ours(case, suite.nets.ours), run_theirs(case, suite.nets.truth)
    shapes = {"": (3, 5, 2), "d itm_head.weight": (2, 48), "d itm_head.bias": (3, 2)}
    assert (
        {key: value.shape for key, value in ours.items()}
        == {key: value.shape for key, value in theirs.items()}
        == shapes
    )
    alone = [run_theirs(problem, suite.nets.truth)["d itm_head.weight"] for problem in case.problems()]
    wanted = sum(alone)
    assert np.abs(wanted - theirs["d itm_head.weight"]).max() < 1e-13 * np.abs(wanted).max()
    # 1e-7 are float32's own, for torch too
    assert np.abs(wanted - ours["d itm_head.weight"]).max() < 5e-7 * np.abs(wanted).max()
    # the control: one problem is not all
    assert np.abs(wanted - alone[0]).max() > 0.5 * np.abs(wanted).max()
