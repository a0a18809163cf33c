"""A mesh of real processes makes the losses, gradients, updates and texts of one process, and no more travels
than theory says."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.mesh.launch import ROOT, launch

PROGRAM = ROOT / "tests" / "mesh" / "steps.py"
MESHES = {  # (data, model) → what it runs
    (2, 1): ["stage1:pynative:sharded", "stage1:graph", "llama:graph:sharded", "opt:pynative", "counts"],
    (1, 2): [
        "stage1:graph",
        "trained_vit:pynative",
        "llama:graph",
        "baichuan:pynative",
        "opt:pynative",
        "writes:pynative",
        "writes:graph",
        "counts",
    ],
    (2, 2): [
        "stage1:graph:sharded",
        "trained_vit:pynative:sharded",
        "llama:pynative",
        "baichuan:pynative:sharded",
        "accumulated:graph:sharded:recompute",
        "counts",
    ],
    (4, 1): ["stage1:pynative:sharded", "trained_vit:pynative", "llama:pynative"],
    (1, 4): ["stage1:pynative", "llama:pynative", "opt:pynative"],
}
ALONE = sorted(
    {":".join(part.split(":")[:2]) for parts in MESHES.values() for part in parts if part != "counts"}
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes."""
    file = tmp_path_factory.mktemp("alone") / "alone.npz"
    subprocess.run(
        [sys.executable, str(PROGRAM), "1", "1", str(file), *ALONE, "counts"],
        check=True,
        cwd=file.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=240,
    )
    return dict(np.load(file))


def made_by(mesh, parts, folder):
    file = folder / "mesh.npz"
    # 2 x 2 on one processor: 230
    code, said = launch(mesh[0] * mesh[1], PROGRAM, *mesh, file, *parts, logs=folder / "logs", seconds=480)
    assert code == 0, said
    return dict(np.load(file))


def differences(ours, theirs):
    """{name: how far off, as a share of what reordered sums of float32 may change}: 2e-5 of the tensor's own
    largest number, and 2e-6 of the largest of all gradients, parameters and so on, since what is 0 but for
    rounding has no size of its own."""

    def kind(name):
        return name.split()[2]

    largest = {}
    for name, array in theirs.items():
        largest[kind(name)] = max(largest.get(kind(name), 0), np.abs(array).max())
    return {
        name: float(
            np.abs(ours[name] - array).max()
            / (2e-5 * np.abs(array).max() + 2e-6 * largest[kind(name)] + 1e-30)
        )
        for name, array in theirs.items()
    }


def of_parts(arrays, parts):
    begins = tuple(" ".join(part.split(":")[:2]) + " " for part in parts)
    return {name: array for name, array in arrays.items() if name.startswith(begins)}


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: "{}x{}".format(*mesh))
def test_a_mesh_trains_as_one_process(alone, mesh, tmp_path):
    made = made_by(mesh, MESHES[mesh], tmp_path)
    expected = of_parts(alone, MESHES[mesh])
    assert len(expected) > 100 and set(expected) == set(of_parts(made, MESHES[mesh]))
    off = {name: value for name, value in differences(made, expected).items() if not value < 1}
    assert not off, sorted(off.items(), key=lambda one: -one[1])[:8]
    if "counts" in MESHES[mesh]:
        check_counts(mesh, alone, made)


def check_counts(mesh, alone, made):
    """Two AllReduces forwards and two back per layer under model parallelism, and the bytes of the trained
    parameters under data parallelism; nothing on one card."""
    assert alone["both"].tolist() == alone["averaged"].tolist() == [0, 0]
    data, model = mesh
    layers, activation = 2, 2 * 6 * 32 * 4
    wanted = 2 * layers if model > 1 else 0
    assert made["forwards"].tolist() == [wanted, wanted * activation]
    assert made["both"].tolist() == [2 * wanted, 2 * wanted * activation]
    assert made["averaged"][1] == (made["trainable"] if data > 1 else 0)
    assert model == 1 or made["trainable"] < alone["trainable"]


def test_modes_write_the_same_and_pictures_differ(alone):
    for name in ("greedy", "beams", "drawn"):
        ids = alone[f"writes graph {name}"]
        assert (
            np.array_equal(ids, alone[f"writes pynative {name}"])
            and len(np.unique(ids, axis=0)) == 3
            and len(np.unique(ids)) > 8
        )
    assert not np.array_equal(alone["writes graph greedy"], alone["writes graph beams"])


def test_cards_that_see_their_own_words_only_are_noticed(alone, tmp_path):
    made = made_by((1, 2), ["writes:pynative:wrong"], tmp_path)
    off = differences(made, of_parts(alone, ["writes:pynative"]))
    assert len(off) == 6 and min(off.values()) > 10, off


def test_groups_of_all_processes_instead_of_the_data_parallel_ones_are_noticed(alone, tmp_path):
    made = made_by((2, 2), ["stage1:pynative:wrong"], tmp_path)
    off = differences(made, of_parts(alone, ["stage1:pynative"]))
    assert off["stage1 pynative loss 0"] > 10 and off["stage1 pynative gradient qformer.query_tokens"] > 10
