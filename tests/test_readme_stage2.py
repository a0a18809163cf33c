"""The commands and snippets of the READMEs on stage 2 run as they stand, from the published kinds of files to
an evaluated training.

The files have the names, the layout and the keys of the published ones, at a size that a test can afford; the
presets are the shipped ones with the dimensions of these files."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import yaml
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import run_blip2  # noqa: E402
from mindblip2 import Blip2Qformer, config, load_config  # noqa: E402
from mindblip2.config import loading  # noqa: E402
from mindblip2.convert.convert_weight import main as convert  # noqa: E402
from tests import stage2_small  # noqa: E402
from tests.convert.stage2 import save  # noqa: E402
from tests.convert.test_stage2 import SIZES, TINY  # noqa: E402
from tests.convert.test_transformers_stage_2 import OPT, blip2  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
BEGIN = ".venv/bin/python "
OPT_SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "num_layers": 3,
    "num_heads": 4,
    "intermediate_size": 160,
    "max_position_embeddings": 128,
}


def blocks(name="README.md"):
    """(language, text) of the fenced blocks of the section."""
    text = (ROOT / name).read_text(encoding="utf-8")
    section = re.search(
        r"^## [^\n]*(?:stage 2|第二阶段)[^\n]*\n(.*?)^## ", text, re.MULTILINE | re.DOTALL
    ).group(1)
    return re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)


def published(folder):
    """The files that a user has fetched."""
    whole, llama = (
        torch.load(TINY / name, weights_only=True)["model"]
        for name in ("blip2opt_tiny.pth", "llama_tiny.pth")
    )
    bridge = {
        name: value for name, value in whole.items() if not name.startswith(("visual_encoder.", "opt_model."))
    }
    torch.save({"model": bridge}, folder / "blip2_pretrained_opt2.7b.pth")
    vicuna = {name: value for name, value in bridge.items() if not name.startswith("opt_")}
    torch.save(
        {"model": vicuna | {name: value for name, value in llama.items() if name.startswith("llm_proj")}},
        folder / "blip2_pretrained_vicuna7b.pth",
    )
    eva = {
        name.removeprefix("visual_encoder."): value
        for name, value in whole.items()
        if name.startswith("visual_encoder.")
    }
    unused = {
        name.replace("blocks.2.", "blocks.3."): value
        for name, value in eva.items()
        if name.startswith("blocks.2.")
    }
    torch.save(eva | unused, folder / "eva_vit_g.pth")
    save(
        {
            name.removeprefix("opt_model."): value
            for name, value in whole.items()
            if name.startswith("opt_model.")
        },
        folder / "opt-2.7b",
        parts=2,
        model_type="opt",
        num_attention_heads=4,
    )
    save(
        {
            name.removeprefix("llm_model."): value
            for name, value in llama.items()
            if name.startswith("llm_model.")
        },
        folder / "vicuna-7b-v1.1",
        model_type="llama",
        num_attention_heads=4,
    )
    blip2(OPT).save_pretrained(folder / "blip2-opt-2.7b")
    return stage2_small.tokenizer_files(folder / "opt-2.7b")


def presets_of(folder, words):
    """The shipped presets with the dimensions of the files."""
    folder.mkdir()
    for path in (ROOT / "configs").glob("*blip2_stage2_vit_g_opt_2_7b.yaml"):
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        model = raw["model"]["model_config"]
        model.update(SIZES, max_txt_len=16)
        model["text_config"].update(OPT_SIZES, eos_token_id=words.line_end)
        raw["processor"].update(image_processor={"image_size": 112})
        raw["processor"]["tokenizer"].update(max_length=16)
        raw["context"], raw["generation"] = {"mode": 1}, {"max_new_tokens": 4}
        if raw["run_mode"] == "train":
            raw["runner_config"].update(epochs=1, batch_size=4)
            raw["lr_schedule"].update(warmup_steps=1)
            raw["train_dataset"].update(num_parallel_workers=0, text_transforms={"max_length": 16})
        (folder / path.name).write_text(yaml.safe_dump(raw), encoding="utf-8")


def data(folder):
    """DATA and VQA as the presets and the commands name them, and the user's own pictures."""

    def picture(path, number):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(
            path
        )

    coco, vg, vqa = folder / "DATA" / "coco2014" / "coco", folder / "DATA" / "vg", folder / "VQA"
    for i in range(4):
        picture(coco / "images" / f"{i}.jpg", i)
        picture(vg / "images" / f"{i}.jpg", 10 + i)
        picture(vqa / "val2014" / f"COCO_val2014_{i:012d}.jpg", 20 + i)
    for where in (coco, vg):
        (where / "annotations").mkdir()
    single = [
        {"image": f"{i}.jpg", "caption": f"a picture of the {i}", "image_id": f"coco_{i}"} for i in range(4)
    ]
    (coco / "annotations" / "coco_karpathy_train.json").write_text(json.dumps(single))
    (vg / "annotations" / "vg_caption.json").write_text(json.dumps(single))
    for part in ("val", "test"):
        (coco / "annotations" / f"coco_karpathy_{part}.json").write_text(
            json.dumps([{"image": f"{i}.jpg", "caption": [f"a red {i}", f"a blue {i}"]} for i in range(3)])
        )
    asked = [{"image_id": i, "question": "What is it?", "question_id": 10 * i} for i in range(4)]
    (vqa / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(
        json.dumps({"data_subtype": "val2014", "questions": asked})
    )
    (vqa / "v2_mscoco_val2014_annotations.json").write_text(
        json.dumps(
            {
                "data_subtype": "val2014",
                "annotations": [{**one, "answers": [{"answer": "a cat"}] * 10} for one in asked],
            }
        )
    )
    for path in ("photo.jpg", "picture.png", "folder/one.jpg"):
        picture(folder / path, 40)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A working directory as the README's reader has it."""
    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    words = published(tmp_path)
    presets_of(tmp_path / "configs", words)
    data(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MINDBLIP2_CACHE", raising=False)
    monkeypatch.setattr(loading, "config_folder", lambda: tmp_path / "configs")
    first = load_config("blip2_stage2_vit_g_opt_2_7b").model.model_config.replace(text_config=None)
    Blip2Qformer(first).save_checkpoint("blip2_stage1.ckpt")
    yield tmp_path
    ms.set_context(mode=mode)


def run(line):
    """One line of a shell; what the project's own programs return."""
    if not line.startswith(BEGIN):
        return subprocess.run(["bash", "-c", line], check=True)
    program, *arguments = [
        os.path.expanduser(word) for word in shlex.split(line.removeprefix(BEGIN), comments=True)
    ]
    if program == "convert/convert_weight.py":
        assert convert(arguments) == 0, line
        return None
    assert program == "run_blip2.py"
    return run_blip2.run(arguments)


def test_the_commands_and_snippets_run_as_they_stand(checkout, capsys):
    results = []
    for language, text in blocks():
        if language == "python":
            exec(compile(text, "README.md", "exec"), {})
        else:
            results += [run(line) for line in text.splitlines() if line]
        # of the alternatives the last conversion of OPT is used, which has the presets' dimensions
        if len(results) == 4:
            assert len(list((checkout / ".cache" / "mindblip2").glob("*.ckpt"))) == 2
    ran = [one for one in results if one is not None and not isinstance(one, subprocess.CompletedProcess)]
    texts, captions, answers, plain, judged = ran
    assert len(texts) == 2 and all(text.startswith("a photo of") for text in texts)
    assert captions["pictures"] == 3 and captions["prompt"] == "a photo of" and "CIDEr" in captions
    assert (
        answers["questions"] == 4
        and answers["accuracy"] == 0
        and answers["prompt"] == "Question: {} Short answer:"
    )
    assert plain[-1]["step"] == 2 and not any("eval_CIDEr" in entry for entry in plain)
    assert [entry["step"] for entry in judged if "eval_CIDEr" in entry] == [2]
    assert set(json.loads(Path("judged/checkpoint/rank_0/best.json").read_text())) == {
        "checkpoint",
        "eval_CIDEr",
    }
    assert Path("image_to_text_generation_result.txt").is_file()
    assert "started from blip2_stage1.ckpt" in capsys.readouterr().out


def test_both_readmes_have_the_section():
    kinds = [language for language, _ in blocks()]
    assert (
        kinds == [language for language, _ in blocks("README_CN.md")]
        and kinds.count("python") == 2
        and kinds.count("bash") == 4
    )


def test_a_command_that_does_not_exist_would_be_noticed(checkout):
    """The control: a wrong flag, a wrong file, a wrong preset."""
    shutil.copytree("opt-2.7b", ".cache/mindblip2/opt_2_7b")
    predict = "run_blip2.py --run_mode predict --config itt_blip2_stage2_vit_g_opt_2"
    for line, kind in (
        (f"{predict}_7b --predict_dat photo.jpg", SystemExit),
        (f"{predict} --predict_data photo.jpg", config.ConfigError),
        ("convert/convert_weight.py --torch_path nowhere.pth --mindspore_path x.ckpt", AssertionError),
    ):
        with pytest.raises(kind):
            run(BEGIN + line)
