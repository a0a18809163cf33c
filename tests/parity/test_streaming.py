"""``python -m parity`` from beginning to end, on tiny networks: what a user runs at full width."""

import json
import re
import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mindblip2.checkpoint.ckpt import Checkpoint, write_checkpoint  # noqa: E402
from mindblip2.config import load_config  # noqa: E402
from mindblip2.parity.__main__ import main  # noqa: E402
from mindblip2.parity.defects.language_model import LANGUAGE_MUTATIONS  # noqa: E402
from mindblip2.parity.defects.mutations import MUTATIONS, Mutation  # noqa: E402
from mindblip2.parity.inputs import captions, pictures  # noqa: E402
from mindblip2.parity.reference.model import seeded_state_dict  # noqa: E402
from mindblip2.parity.reference.outputs import twin_config  # noqa: E402
from mindblip2.parity.streaming import Stream, Window  # noqa: E402
from mindblip2.parity.weights import VIT, Seeded, Weights, resized  # noqa: E402
from tests.parity.conftest import FILES, TINY, tiny_config  # noqa: E402

pytestmark = pytest.mark.usefixtures("pynative")


@pytest.fixture(scope="module")
def yaml(tmp_path_factory):
    """Two Q-Former layers: the parts are compared in test_cases.py, here it is the way there."""
    config = tiny_config().replace(
        qformer_config={"num_hidden_layers": 2}, vision_config={"num_hidden_layers": 3}
    )
    return str(config.save_pretrained(tmp_path_factory.mktemp("config")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return str(tiny_config().save_pretrained(tmp_path_factory.mktemp("whole")))


def test_random_weights_pass_and_leave_a_report(yaml, tmp_path, capsys):
    report = tmp_path / "sub" / "report.json"
    assert main(["--config", yaml, "--report", str(report)]) == 0
    printed = capsys.readouterr().out
    assert "PASS: " in printed and "chained vit.blocks.*" in printed
    document = json.loads(report.read_text())
    assert document["pass"] is True and document["about"]["command"].startswith("python -m parity --config")
    assert {"date", "hardware", "mindspore", "torch", "peak memory GB", "weights"} <= set(document["about"])
    names = {row["name"] for row in document["rows"]}
    assert {f"vit.blocks.{i}" for i in range(3)} | {f"chained vit.blocks.{i}" for i in range(3)} <= names
    assert {
        "vit.blocks.0 d x",
        "vit.blocks.2.norm1",
        "see.layers.1 d image",
        "stage1.losses",
        "chained qformer.lm_head",
    } <= names
    assert any(name.startswith("stage1") and name.endswith("d qformer.query_tokens") for name in names)
    # backward once, insides of the first and the last
    assert not {"vit.blocks.1 d x", "vit.blocks.1.norm1"} & names
    page = report.with_suffix(".md").read_text()
    assert (
        page.startswith("# Parity with PyTorch, 20")
        and "python -m parity --config" in page
        and "| pass |" in page
    )


def test_a_defect_fails(yaml, monkeypatch, capsys):
    monkeypatch.setattr(Stream, "qformer_rows", lambda self: [])
    assert main(["--config", yaml, "--blocks", "1", "--defect", "ViT eps 1e-5"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL: " in printed and "vit.blocks.0.norm1" in printed


def test_the_mutation_table(monkeypatch, capsys):
    """All of it is test_defects.py; the command runs it on networks that need no file."""
    some = {name: MUTATIONS[name] for name in ("tanh GELU", "ViT eps 1e-5", "LM without shift")}
    monkeypatch.setattr("mindblip2.parity.defects.mutation_run.MUTATIONS", some)
    monkeypatch.setattr("mindblip2.parity.defects.mutation_run.MODELS", ("llama",))
    monkeypatch.setattr(
        "mindblip2.parity.defects.mutation_run.LANGUAGE_MUTATIONS",
        {"the future is visible": LANGUAGE_MUTATIONS["the future is visible"]},
    )
    assert main(["--defects"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        re.match(r"without a defect \d+ cases, none fails$", lines[0])
        and [line.split()[0] for line in lines[1:]] == ["caught"] * 4
    )
    some["no defect at all"] = Mutation(lambda model: (), "lm", "itm")
    assert main(["--defects"]) == 1
    assert capsys.readouterr().out.splitlines()[-2].startswith("MISSED  no defect at all")


def test_the_user_s_files(whole, ckpts, monkeypatch, capsys):
    """LAVIS's file on the twin's side, the converted one on ours; only the ViT, which is what streams."""
    monkeypatch.setattr(Stream, "qformer_rows", lambda self: [])
    files = ["--torch_path", str(TINY / FILES[1]), "--ckpt", str(ckpts[FILES[1]])]
    assert main(["--config", whole, *files]) == 0
    assert main(["--config", whole, *files[:2]]) == 0  # without .ckpt by the converter's rows
    # not rounded to float16
    assert main(["--config", whole, *files[:2], "--ckpt", str(ckpts[FILES[0]])]) == 1
    assert "FAIL: " in capsys.readouterr().out


def test_a_wrong_conversion_fails(whole, ckpts, tmp_path, monkeypatch, capsys):
    """q and v biases exchanged in the last block only."""
    stored, names = Checkpoint(ckpts[FILES[0]]), ["vit.blocks.2.attn.q_bias", "vit.blocks.2.attn.v_bias"]
    swap = dict(zip(names, reversed(names), strict=True))
    write_checkpoint(
        tmp_path / "wrong.ckpt", ((name, "Float32", stored[swap.get(name, name)]) for name in stored)
    )
    monkeypatch.setattr(Stream, "qformer_rows", lambda self: [])
    assert (
        main(
            ["--config", whole, "--torch_path", str(TINY / FILES[0]), "--ckpt", str(tmp_path / "wrong.ckpt")]
        )
        == 1
    )
    failed = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if line.startswith("fail")]
    assert "vit.blocks.2.attn" in failed and "vit.blocks.1" not in failed


def test_a_vit_of_its_own_file(whole, tmp_path, monkeypatch):
    """blip2_pretrained.pth holds no ViT; eva_vit_g.pth has one block more, which BLIP-2 does not use."""
    config = load_config(whole).model.model_config
    deep = config.replace(vision_config={"num_hidden_layers": 4})
    state = seeded_state_dict(twin_config(deep))
    torch.save(
        {name.removeprefix(VIT): value for name, value in state.items() if name.startswith(VIT)},
        tmp_path / "eva.pth",
    )
    torch.save(
        {"model": {name: value for name, value in state.items() if not name.startswith(VIT)}},
        tmp_path / "main.pth",
    )
    weights = Weights(config, tmp_path / "main.pth", tmp_path / "eva.pth")
    window = Window(weights, config)
    window.slide(2)
    theirs = window.nets.truth.visual_encoder.blocks[0].attn.proj.weight.numpy()
    assert np.array_equal(theirs, state["visual_encoder.blocks.2.attn.proj.weight"].double().numpy())
    ours = dict(window.nets.ours.parameters_and_names())["vit.blocks.0.attn.proj.weight"].asnumpy()
    assert np.array_equal(ours, theirs.astype(np.float32))


def test_errors_say_what_and_leave_with_2(whole, tmp_path, capsys):
    assert main(["--config", "no_such_preset"]) == 2
    assert main(["--config", whole, "--torch_path", str(tmp_path / "absent.pth")]) == 2
    torch.save({"blocks.0.attn.qkv.weight": torch.zeros(1)}, tmp_path / "eva.pth")
    assert main(["--config", whole, "--torch_path", str(tmp_path / "eva.pth")]) == 2
    assert main(["--config", whole, "--defect", "ViT eps 1e-4"]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 4 and "did you mean 'ViT eps 1e-5'" in said


def test_seeded_weights_need_no_memory_until_asked_for():
    state = Seeded(tiny_config())
    assert len(state) == len(dict(state.meta)) and all(value.is_meta for value in state.meta.values())
    assert torch.equal(state["itm_head.bias"], state["itm_head.bias"]) and state["itm_head.bias"].shape == (
        2,
    )


@pytest.mark.parametrize("grids", ["4_to_8", "16_to_26", "16_to_35", "16_to_16"])
def test_positions_for_another_size_are_lavis_s(grids):
    with np.load(TINY.parent / "processors" / "pos_embed.npz") as data:
        before, after = (torch.from_numpy(data[f"from_{grids}.{end}"]) for end in ("in", "out"))
    assert (resized(before, after.shape[1]) - after).abs().max() < 1e-5


def test_captions_and_pictures():
    config = tiny_config()
    ids = captions(3, config)
    assert ids.shape == (8, 3, 32) and (ids[..., 0] == 101).all() and ids.max() < 30522
    for row in ids.reshape(-1, 32):
        end = int(np.flatnonzero(row == 102)[0])
        assert row[:end].all() and not row[end + 1 :].any()
    image = pictures(3, 56)
    assert (
        image.shape == (3, 3, 56, 56) and image.dtype == np.float32 and np.array_equal(image, pictures(3, 56))
    )


def test_a_file_is_left_as_it_was(tmp_path, whole, monkeypatch):
    path = tmp_path / FILES[0]
    shutil.copy(TINY / FILES[0], path)
    monkeypatch.setattr(Stream, "qformer_rows", lambda self: [])
    assert main(["--config", whole, "--torch_path", str(path), "--blocks", "2"]) == 0
    assert path.read_bytes() == (TINY / FILES[0]).read_bytes()
