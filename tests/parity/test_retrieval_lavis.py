"""Our evaluator on the tiny checkpoint gives the score matrices that LAVIS's own ``compute_itm`` and cosines
give."""

import numpy as np
import pytest

pytest.importorskip("torch")

from mindspore import Tensor  # noqa: E402

from mindblip2.evaluation.retrieval import RetrievalConfig, score  # noqa: E402

pytestmark = pytest.mark.usefixtures("pynative")


@pytest.mark.parametrize("k", [2, 4])
def test_score_matrices_are_lavis_own(model, lavis, k):
    pictures, ids = list(lavis.inputs["image"].numpy()), lavis.inputs["input_ids"].numpy()
    scores = score(
        model, lambda batch: Tensor(np.stack(batch)), pictures, ids, RetrievalConfig(k_test=k, batch_size=3)
    )
    np.testing.assert_allclose(scores.i2t, lavis.outputs[f"retrieval.k{k}.i2t"], atol=1e-5)
    np.testing.assert_allclose(scores.t2i, lavis.outputs[f"retrieval.k{k}.t2i"], atol=1e-5)
    # control: the cosines alone are not these
    assert np.abs(scores.itc - lavis.outputs[f"retrieval.k{k}.i2t"]).max() > 0.01
