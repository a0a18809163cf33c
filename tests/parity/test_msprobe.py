"""Exported results have the layout that msprobe reads (tried with mindstudio-probe 26.2.0; docs/parity.md has
the commands)."""

import json

import numpy as np
import pytest

from mindblip2.parity.report.msprobe import call, export, torch_path


@pytest.fixture
def folder(tmp_path):
    names = (
        "vit.blocks.0",
        "ln_vision",
        "qformer.encoder.layers.1 see",
        "qformer.encoder.layers.1 match",
        "vit.embed",
    )
    ours = {name: np.full((2, 3), n, np.float32) for n, name in enumerate(names)}
    return export(tmp_path / "out", ours, {name: value + 1 for name, value in ours.items()}, freq=2)


def data_of(folder, side):
    return json.loads((folder / side / "step0" / "rank0" / "dump.json").read_text())


def test_both_sides_have_the_same_names_and_their_tensors(folder):
    ours, bench = data_of(folder, "npu"), data_of(folder, "bench")
    assert list(ours["data"]) == list(bench["data"]) and ours["task"] == "tensor" and ours["level"] == "L0"
    # match is the third verb
    (output,) = ours["data"]["Cell.qformer.encoder.layers.1.Part.forward.2"]["output"]
    assert output["shape"] == [2, 3] and output["dtype"] == "Float32" and output["Mean"] == 3
    assert output["Norm"] == pytest.approx(54**0.5)
    for side, value in (("npu", 3), ("bench", 4)):
        stored = np.load(
            folder / side / "step0" / "rank0" / "dump_tensor_data" / output["data_name"], allow_pickle=False
        )
        assert stored.shape == (2, 3) and (stored == value).all()


def test_statistics_carry_torch_s_names_and_a_mapping(folder):
    theirs = data_of(folder, "torch")
    assert theirs["task"] == "statistics" and theirs["framework"] == "pytorch"
    assert set(theirs["data"]) == {
        "Module.visual_encoder.blocks.0.Part.forward.0",
        "Module.ln_vision.Part.forward.0",
        "Module.Qformer.bert.encoder.layer.1.Part.forward.0",
        "Module.Qformer.bert.encoder.layer.1.Part.forward.2",
    }
    lines = (folder / "data_mapping.yaml").read_text().splitlines()[1:]
    assert (
        '"Cell.ln_vision.Part.forward.0.output.0": "Module.ln_vision.Part.forward.0.output.0"' in lines
        and len(lines) == 4
    )
    assert list((folder / "bench").rglob("*.npy")) and not list((folder / "torch").rglob("*.npy"))


def test_names():
    assert (
        call("qformer.encoder.layers.0.query_ffn.up match")
        == "qformer.encoder.layers.0.query_ffn.up.Part.forward.1"
    )
    assert (
        torch_path("vit.blocks.3.mlp.up", 2) == "visual_encoder.blocks.3.mlp.fc1"
        and torch_path("vit.embed", 2) is None
    )
