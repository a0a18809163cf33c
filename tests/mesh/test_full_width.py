"""benchmarks/mesh_full_width.py on small layers: they pass, mistakes are caught, and what is wrong in a
single array is noticed."""

import numpy as np
import pytest

from tests.test_benchmarks import loaded


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The script, and what its processes have made: folder, runs, those with a mistake."""
    pytest.importorskip("torch")
    full, folder = loaded("mesh_full_width"), tmp_path_factory.mktemp("found")
    return full, folder, *full.run_all(folder, list(full.LAYERS), ["pynative"], small=True)


def judged(found):
    full, folder, runs, wrong = found
    return full.judged(folder, runs, wrong, list(full.LAYERS), small=True)


def test_small_layers_pass_and_every_mistake_is_caught(found):
    full, _, runs, wrong = found
    figures = judged(found)
    assert full.as_it_should_be(*figures) and (len(runs), len(wrong)) == (3, 9)
    text = full.report(*figures)
    assert (
        text.count("| yes |") == 9
        and "NO" not in text
        and "| llama | d llm.layers.0.ffn.down.weight |" in text
    )


@pytest.mark.parametrize(
    "cards, name", [("1", "d qformer.memory.value.0.weight"), ("2", "d x"), ("2", "apart")]
)
def test_a_single_wrong_array_is_noticed(found, cards, name):
    full, folder, runs, _ = found
    file = full.place(folder, cards, "qformer:pynative") / f"{name}.npy"
    right = np.load(file)
    np.save(file, right * 1.0001 + 1e-3)
    assert not full.as_it_should_be(*judged(found))
    np.save(file, right)


def test_a_mistake_that_changes_nothing_is_reported(found):
    full = found[0]
    tensors, caught, apart = judged(found)
    right = [rows[2, "vit:pynative"] for _, rows in tensors["vit"].values()]
    caught["vit:pynative:q, k and v cut as one"] = right
    assert not full.as_it_should_be(tensors, caught, apart) and "| NO |" in full.report(
        tensors, caught, apart
    )
