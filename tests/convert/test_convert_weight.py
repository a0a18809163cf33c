"""LAVIS's files go to .ckpt and back without a bit lost, and nothing is written where something does not
fit."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import mindspore as ms  # noqa: E402

from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError, write_checkpoint  # noqa: E402
from mindblip2.config import Blip2Config  # noqa: E402
from mindblip2.convert.convert_weight import main, to_mindspore, to_torch  # noqa: E402
from mindblip2.convert.detect import QFORMER_TEXT_NAMES  # noqa: E402
from mindblip2.convert.tensor_transforms import interpolate_pos_embed  # noqa: E402
from mindblip2.models.blip2_qformer import Blip2Qformer  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "reference" / "tiny"
FIXTURES = ROOT / "tests" / "fixtures"
COVERAGE = [
    "heads                  7        7        0        0",
    "ViT                   30       30        0        0",
    "ln_vision              2        2        0        0",
    "Q-Former             118      118        0        0",
]
DROPPED = [
    "dropped:    1 x buffer 0, 1, 2, …: computed here (e.g. Qformer.bert.embeddings.position_ids)",
    "dropped:    1 x tied: the word embedding, kept once (e.g. Qformer.cls.predictions.decoder.weight)",
    "dropped:    1 x tied: cls.predictions.bias, kept once (e.g. Qformer.cls.predictions.decoder.bias)",
]


def written_by(path):
    return torch.load(path, weights_only=True)["model"]


def assert_same_bits(one, two):
    assert one.keys() == two.keys()
    assert [n for n in one if one[n].dtype != two[n].dtype or not torch.equal(one[n], two[n])] == []


# ------------------------------------------------------------------------------------------------ LAVIS
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}], ids=["bare", "model"])
def test_a_whole_file_is_converted_and_accounted_for(convert, lavis, wrap):
    stored, text = convert(wrap(lavis))
    assert len(stored) == 157 == len(lavis) - 3
    lines = text.splitlines()
    assert lines[0].split() == ["part", "parameters", "mapped", "copied", "made"]
    assert (
        lines[1:8] == COVERAGE + DROPPED
        and lines[8] == "note:    vision_config: {image_size: 56}"
        and len(lines) == 11
    )
    assert lines[9].startswith("note:    ln_vision_eps: 1.0e-05 (LAVIS's") and lines[10].startswith(
        "written: "
    )
    np.testing.assert_array_equal(
        stored["qformer.memory.key.1.weight"],
        lavis["Qformer.bert.encoder.layer.2.crossattention.self.key.weight"],
    )
    np.testing.assert_array_equal(
        stored["vit.patch_embed.proj.weight"], lavis["visual_encoder.patch_embed.proj.weight"].reshape(32, -1)
    )


def test_files_of_torch_before_1_6_are_converted_too(convert, lavis, tmp_path):
    torch.save({"model": lavis}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    new, old = (convert(source)[0] for source in (lavis, tmp_path / "old.pth"))
    for name in new:
        np.testing.assert_array_equal(new[name], old[name])


def test_without_vit_the_other_file_is_asked_for_and_then_used(
    convert, lavis, lavis_without_vit, eva, tmp_path
):
    error = convert(lavis_without_vit, expect=1)
    assert error.startswith("error: the file holds no ViT") and "add --vit_path eva_vit_g.pth" in error
    whole, _ = convert(lavis)
    torch.save(eva, tmp_path / "eva.pth")
    both, text = convert(lavis_without_vit, "--vit_path", tmp_path / "eva.pth")
    for name in whole:
        np.testing.assert_array_equal(whole[name], both[name], err_msg=name)
    assert set(COVERAGE) <= set(text.splitlines())
    assert "dropped:   13 x block 2: unused, BLIP-2 reads the output of the block before it" in text


@pytest.mark.parametrize("swap", ["files", "kinds"])
def test_files_in_the_wrong_place_are_named(convert, lavis, lavis_without_vit, eva, tmp_path, swap):
    torch.save(lavis_without_vit, tmp_path / "lavis.pth")
    if swap == "files":
        assert "is the ViT alone: give it as --vit_path" in convert(
            eva, "--vit_path", tmp_path / "lavis.pth", expect=1
        )
    else:
        assert "lavis.pth is no EVA ViT: --vit_path takes eva_vit_g.pth" in convert(
            lavis_without_vit, "--vit_path", tmp_path / "lavis.pth", expect=1
        )
        torch.save(eva, tmp_path / "eva.pth")
        assert "holds a ViT of its own" in convert(lavis, "--vit_path", tmp_path / "eva.pth", expect=1)


@pytest.mark.parametrize("name", ["blip2_tiny.pth", "blip2_tiny_fp16vit.pth", "bf16"])
def test_there_and_back_no_bit_is_lost(tmp_path, lavis, name):
    source = TINY / name
    if name == "bf16":
        source = tmp_path / "bf16.pth"
        torch.save(
            {"model": {n: v.bfloat16() if v.is_floating_point() else v for n, v in lavis.items()}}, source
        )
    to_mindspore(source, tmp_path / "x.ckpt")
    to_torch(tmp_path / "x.ckpt", tmp_path / "back.pth")
    assert_same_bits(written_by(source), written_by(tmp_path / "back.pth"))
    state = written_by(tmp_path / "back.pth")
    words = state["Qformer.bert.embeddings.word_embeddings.weight"]
    # tied, so stored once
    assert state["Qformer.cls.predictions.decoder.weight"].data_ptr() == words.data_ptr()
    assert (tmp_path / "back.pth").stat().st_size < source.stat().st_size + 2000


def test_the_converted_model_computes_what_lavis_did(tmp_path):
    to_mindspore(TINY / "blip2_tiny.pth", tmp_path / "x.ckpt")
    config = Blip2Config(
        vision_config={
            "image_size": 112,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 279,
        },
        qformer_config={
            "hidden_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "encoder_width": 64,
            "query_length": 8,
            "head_embed_dim": 32,
        },
    )
    ms.set_context(mode=ms.PYNATIVE_MODE)
    model = Blip2Qformer(config).load_checkpoint(tmp_path / "x.ckpt").set_train(False)
    with np.load(TINY / "inputs.npz") as inputs, np.load(TINY / "outputs.npz") as outputs:
        image, ids = ms.Tensor(inputs["image"]), ms.Tensor(inputs["input_ids"].astype(np.int32))
        np.testing.assert_allclose(model.itc_similarity(image, ids).asnumpy(), outputs["itm.itc"], atol=1e-5)
        own = outputs["itm.logits"][np.arange(len(ids)), np.arange(len(ids))]
        np.testing.assert_allclose(model.itm_logits(image, ids).asnumpy(), own, atol=1e-5)


# ------------------------------------------------------------------------------------------------ types and s
@pytest.mark.parametrize("source", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("wanted", [None, "float32", "float16", "bfloat16"])
def test_matrices_take_the_type_that_is_asked_for(convert, lavis, source, wanted):
    kind = getattr(torch, source)
    state = {n: v.to(kind) if v.is_floating_point() else v for n, v in lavis.items()}
    stored, _ = convert(state, *(["--dtype", wanted] if wanted else []))
    names = {"float32": "Float32", "float16": "Float16", "bfloat16": "BFloat16", "float64": "Float64"}
    for name in stored:
        expected = source if wanted is None else wanted if len(stored.shapes[name]) == 2 else "float32"
        assert stored.types[name] == names[expected], name
    value = state["itm_head.weight"].to(getattr(torch, wanted or source)).float().numpy()
    np.testing.assert_array_equal(stored.float32("itm_head.weight"), value)


def test_weights_that_are_no_floating_point_numbers_are_refused(convert, lavis):
    error = convert({**lavis, "itm_head.weight": torch.ones(2, 24, dtype=torch.int8)}, expect=1)
    assert "a tensor of type torch.int8 and shape (2, 24) can be no weight of this model" in error


def test_position_embeddings_are_interpolated_to_another_picture_size(convert, lavis):
    stored, text = convert(lavis, "--image_size", 98)
    assert stored.shapes["vit.pos_embed"] == (1, 50, 32)
    assert "mapped:    1 x interpolated from 17 to 50 tokens (e.g. vit.pos_embed)" in text
    before = lavis["visual_encoder.pos_embed"]
    np.testing.assert_array_equal(stored["vit.pos_embed"], interpolate_pos_embed(before, 50))
    np.testing.assert_array_equal(stored["vit.pos_embed"][:, 0], before[:, 0])


@pytest.mark.parametrize(
    "flags, complaint",
    [
        (["--image_size", 60], "image_size = 60 is not a multiple of patch_size = 14"),
        (["--config", "blip2_stage_one"], "no configuration 'blip2_stage_one'"),
        (["--config", str(FIXTURES / "mindformers_keys.yaml")], "the files do not make this model"),
    ],
)
def test_flags_that_do_not_fit_are_errors(convert, lavis, flags, complaint):
    assert complaint in convert(lavis, *flags, expect=1)


def test_a_configuration_decides_where_it_is_given(convert, lavis, tmp_path):
    text = (FIXTURES / "tiny.yaml").read_text(encoding="utf-8")
    (tmp_path / "tiny.yaml").write_text(
        text.replace("vocab_size: 50, bos_token_id: 49", "vocab_size: 120, bos_token_id: 119")
    )
    assert len(convert(lavis, "--config", tmp_path / "tiny.yaml")[0]) == 157
    assert convert(lavis, "--config", tmp_path / "tiny.yaml", "--image_size", 98)[0].shapes[
        "vit.pos_embed"
    ] == (1, 50, 32)
    error = convert(lavis, "--config", FIXTURES / "tiny.yaml", expect=1)
    assert (
        "shape: qformer.embeddings.word.embedding_table (Qformer.bert.embeddings.word_embeddings.weight) has "
        "(120, 24), "
        "the model (50, 24)"
    ) in error


# ------------------------------------------------------------------------------------------------ what does n
def test_swapped_fc1_and_fc2_do_not_pass(convert, lavis):
    """MindFormers' converter takes one for the other (the weights, not the biases): the shapes tell."""
    up, down = "visual_encoder.blocks.0.mlp.fc1.weight", "visual_encoder.blocks.0.mlp.fc2.weight"
    error = convert({**lavis, up: lavis[down], down: lavis[up]}, "--config", FIXTURES / "tiny.yaml", expect=1)
    assert f"shape: vit.blocks.0.mlp.up.weight ({up}) has (32, 48), the model (48, 32)" in error
    assert f"shape: vit.blocks.0.mlp.down.weight ({down}) has (48, 32), the model (32, 48)" in error
    error = convert({**lavis, up.replace("0", "1"): lavis[down], down.replace("0", "1"): lavis[up]}, expect=1)
    assert "2 problems" in error and "shape: vit.blocks.1.mlp.up.weight" in error


@pytest.mark.parametrize(
    "lost",
    [
        "query_tokens",
        "Qformer.bert.encoder.layer.3.output.dense.bias",
        "visual_encoder.cls_token",
        "visual_encoder.blocks.1.attn.v_bias",
        "temp",
        "Qformer.cls.predictions.bias",
        "Qformer.bert.embeddings.word_embeddings.weight",
        "visual_encoder.patch_embed.proj.weight",
    ],
)
def test_a_tensor_that_is_missing_is_named(convert, lavis, lost):
    assert lost in convert({name: value for name, value in lavis.items() if name != lost}, expect=1)


def test_leftovers_are_listed(convert, lavis):
    strange = {f"momentum_{i}.weight": torch.ones(2) for i in range(20)}
    error = convert(lavis | strange, expect=1)
    assert "the files do not make this model: 20 problems" in error and "… and 8 more" in error
    assert "leftover: momentum_0.weight has no place in the model" in error


@pytest.mark.parametrize(
    "name, complaint",
    [
        ("llm_proj.bias", "but holds no llm_proj.weight, the projection into the language model"),
        ("t5_proj.weight", "leads into FlanT5, which is not built here"),
    ],
)
def test_half_a_file_of_stage_2_is_named(convert, lavis, name, complaint):
    stage_2 = {key: value for key, value in lavis.items() if not re.match(QFORMER_TEXT_NAMES, key)}
    assert complaint in convert(stage_2 | {name: torch.ones(2)}, expect=1)


def test_a_file_of_another_kind_is_named(convert):
    error = convert({"conv1.weight": torch.ones(2), "fc.bias": torch.ones(2)}, expect=1)
    assert "is none of the files that can be converted" in error and "conv1.weight, fc.bias" in error


def test_tied_tensors_that_differ_are_another_model(convert, lavis):
    name = "Qformer.cls.predictions.decoder.weight"
    assert f"{name} and Qformer.bert.embeddings.word_embeddings.weight differ" in convert(
        {**lavis, name: lavis[name] + 1}, expect=1
    )
    assert len(convert({n: v for n, v in lavis.items() if "decoder" not in n})[0]) == 157  # or are absent


def test_hostile_and_foreign_files_end_with_a_message(convert, lavis, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "marker"),)

    error = convert({"model": lavis, "extra": [Hostile()]}, expect=1)
    assert error.startswith("error: REFUSED") and not (tmp_path / "marker").exists()
    assert convert(tmp_path / "none.pth", expect=1).startswith("error: no file")
    convert(lavis)
    ours = tmp_path / "ours.pth"
    (tmp_path / "out.ckpt").rename(ours)
    assert "ours.pth is a MindSpore file without MindFormers' names: to turn a .ckpt of mindblip2" in convert(
        ours, expect=1
    )


# ------------------------------------------------------------------------------------------------ back to tor
def test_what_is_no_whole_stage_1_goes_nowhere(tmp_path, lavis):
    torch.save(lavis, tmp_path / "x.pth")
    to_mindspore(tmp_path / "x.pth", tmp_path / "x.ckpt")
    stored = Checkpoint(tmp_path / "x.ckpt")
    whole = {name: (name, stored.types[name], stored[name]) for name in stored}
    new = ("lora.weight", "Float32", np.zeros(2, np.float32))
    flaws = {
        "LAVIS stage 1 has no name for lora.weight": [*whole.values(), new],
        "no qformer.query_tokens": [t for t in whole.values() if t[0] != "qformer.query_tokens"],
        "first qformer.lm_head.norm.beta: None in the file, (24,) expected": [
            t for t in whole.values() if t[0] != "qformer.lm_head.norm.beta"
        ],
        "hold no Qformer.bert.embeddings.word_embeddings.weight": [
            t for t in whole.values() if "embedding_table" not in t[0]
        ],
        "first temp: (1,) in the file, () expected": [
            ("temp", "Float32", np.ones(1, np.float32)) if t[0] == "temp" else t for t in whole.values()
        ],
    }
    for complaint, tensors in flaws.items():
        write_checkpoint(tmp_path / "y.ckpt", tensors)
        with pytest.raises(CheckpointError, match=re.escape(complaint)):
            to_torch(tmp_path / "y.ckpt", tmp_path / "y.pth")
    assert not list(tmp_path.glob("y.pth*"))


def test_to_torch_narrows_matrices_too(tmp_path, lavis):
    torch.save(lavis, tmp_path / "x.pth")
    to_mindspore(tmp_path / "x.pth", tmp_path / "x.ckpt")
    state = to_torch(tmp_path / "x.ckpt", tmp_path / "deep" / "y.pth", "float16")
    assert (
        state["visual_encoder.patch_embed.proj.weight"].dtype
        == torch.float16
        == state["itm_head.weight"].dtype
    )
    assert state["temp"].dtype == torch.float32 and state["temp"].shape == ()
    assert_same_bits(state, written_by(tmp_path / "deep" / "y.pth"))


# ------------------------------------------------------------------------------------------------ the command
def test_check_prints_the_table_and_writes_nothing(tmp_path, lavis, capsys):
    torch.save(lavis, tmp_path / "x.pth")
    for flags in ([], ["--mindspore_path", str(tmp_path / "out.ckpt")]):
        assert main(["--check", "--torch_path", str(tmp_path / "x.pth"), *flags]) == 0
        lines = capsys.readouterr().out.splitlines()[1:]
        assert lines[:7] == COVERAGE + DROPPED and all(line.startswith("note:    ") for line in lines[7:])
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--to_torch"],
        ["--to_torch", "--check"],
        ["--dtype", "int8", "--check"],
        ["--to_torch", "--mindspore_path", "x.ckpt", "--image_size", "364"],
    ],
)
def test_flags_that_make_no_sense_are_refused_with_code_2(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--torch_path", "x.pth", *flags])
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err


def test_the_file_runs_as_a_script_from_anywhere(tmp_path, lavis):
    torch.save(lavis, tmp_path / "x.pth")
    script = [sys.executable, str(ROOT / "convert" / "convert_weight.py")]
    done = subprocess.run(
        [*script, "--torch_path", "x.pth", "--mindspore_path", "x.ckpt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert len(Checkpoint(tmp_path / "x.ckpt")) == 157 and done.stdout.startswith("part ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.ckpt", "x.pth"]


@pytest.mark.parametrize("back", [False, True])
def test_b10_a_full_disk_is_one_line_with_the_bytes_that_are_needed(
    tmp_path, lavis, capsys, monkeypatch, back
):
    import errno

    from mindblip2 import file_io

    torch.save(dict(lavis), tmp_path / "in.pth")
    ours = ["--mindspore_path", str(tmp_path / "out.ckpt")]
    forth = [*ours, "--torch_path", str(tmp_path / "in.pth")]
    arguments = ["--to_torch", *ours, "--torch_path", str(tmp_path / "back.pth")] if back else forth
    assert not back or main(forth) == 0
    real = file_io.os.fsync

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_io.os, "fsync", full)
    capsys.readouterr()
    assert main(arguments) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    name = "back.pth" if back else "out.ckpt"
    needed = int(re.search(r"([\d,]+) bytes are needed", said)[1].replace(",", ""))
    assert said.startswith("error: [Errno 28] no space left on the disk") and said.endswith(f"{name}'")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["in.pth", *(["out.ckpt"] if back else [])]
    )
    monkeypatch.setattr(file_io.os, "fsync", real)
    assert main(arguments) == 0  # negative control, and the size
    assert 0.8 < needed / (tmp_path / name).stat().st_size <= 1.0
