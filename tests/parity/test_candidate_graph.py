"""Graph mode gives what LAVIS computed too: losses, features, captions, gradients. Compiling is what takes
the time."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import mindspore as ms  # noqa: E402

from mindblip2.parity.candidate import lavis_arrays  # noqa: E402
from mindblip2.parity.candidate.lavis_arrays import LOSSES  # noqa: E402
from mindblip2.parity.model_triple import judge, tensor  # noqa: E402
from mindblip2.parity.reference.lavis_arrays import beyond  # noqa: E402
from tests.parity.conftest import FILES, load_model, tiny_config  # noqa: E402


@pytest.fixture(scope="module")
def graph(pynative):
    """``pynative`` restores the mode."""
    ms.set_context(mode=ms.GRAPH_MODE)


@pytest.fixture(scope="module")
def compiled(graph, ckpts):
    return load_model(ckpts[FILES[0]], tiny_config())


def test_losses_with_image_ids(compiled, lavis):
    """Without ids: the gradients' forward pass below."""
    inputs = [tensor(lavis.inputs[name].numpy()) for name in ("image", "input_ids", "image_id")]
    negatives = tuple(tensor(lavis.outputs[f"derived.image_id.neg_{kind}_idx"]) for kind in ("image", "text"))
    values = compiled(*inputs, negatives, True)
    for name, value in zip(LOSSES, values, strict=True):
        assert abs(float(value.asnumpy()) - lavis.outputs["derived.image_id." + name]) < 1e-5, name


def test_features(compiled, lavis):
    image, ids = tensor(lavis.inputs["image"].numpy()), tensor(lavis.inputs["longest_input_ids"].numpy())
    seen = lavis_arrays.features(compiled, image, ids)
    assert len(seen) == 13 and beyond(seen, lavis.outputs) == set()


@pytest.mark.parametrize("beams", [1, 3])
def test_captions(compiled, lavis, beams):
    ids = compiled.generate(tensor(lavis.inputs["image"].numpy()), num_beams=beams)
    assert ids.tolist() == lavis.outputs[f"generate.beam{beams}.ids"].tolist()


def test_losses_and_gradients(compiled, lavis):
    """Within the reference's tolerances, and by the noise floor."""
    seen = lavis_arrays.gradients(compiled, lavis, ("loss",))
    assert beyond(seen, lavis.grads) == set()
    names = [name for name in seen if name.startswith("grad.") and not name.endswith("self.key.bias")]
    truth, torch32 = (lavis.gradients(lavis.twin(dtype)) for dtype in (torch.float64, torch.float32))
    rows = judge(
        "graph", *({name: np.asarray(side[name]) for name in names} for side in (seen, torch32, truth))
    )
    assert [row for row in rows if row.verdict != "pass"] == []
