"""Negative controls: every defect is caught by the cases that the mutation table names, and every case
catches one."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mindblip2.parity.compare import failing  # noqa: E402
from mindblip2.parity.defects.mutations import MUTATIONS, defective, mutated  # noqa: E402

pytestmark = pytest.mark.usefixtures("pynative")


@pytest.mark.parametrize("defect", MUTATIONS)
def test_a_defect_is_caught_and_located(suite, defect):
    caught, spared = mutated(suite, defect)
    assert set(caught) - failing(caught) == set(), "missed"
    assert failing(spared) == set(), "blamed without reason"


def test_no_case_is_without_a_defect_that_it_catches(suite):
    """A comparison that has never failed proves nothing."""
    caught = set().union(*(suite.matching(mutation.caught) for mutation in MUTATIONS.values()))
    assert set(suite.names) - caught == set()


def test_a_defect_leaves_no_trace(suite):
    before = {name: parameter.asnumpy().copy() for name, parameter in suite.nets.ours.parameters_and_names()}
    names = [parameter.name for parameter in suite.nets.ours.get_parameters()]
    for defect in MUTATIONS:
        with defective(suite.nets.ours, defect):
            pass
    after = dict(suite.nets.ours.parameters_and_names())
    assert list(before) == list(after)
    assert names == [parameter.name for parameter in after.values()]
    assert all(np.array_equal(value, after[name].asnumpy()) for name, value in before.items())
    assert failing(suite.rows(suite.matching("stage1, vit, see, caption, lm, itc*"))) == set()


def test_a_pattern_that_means_no_case_is_an_error(suite):
    with pytest.raises(ValueError, match="vit.blocks.77"):
        suite.matching("vit, vit.blocks.77")
