"""The check finds what is wrong with a data set, and says so with its exit code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import run_blip2
from mindblip2.config import RunConfig, load_config
from mindblip2.config.schema import ConfigError
from mindblip2.data.datasets.annotations import AnnotationError
from mindblip2.data.datasets.check import check_data
from mindblip2.data.datasets.labelled_images import ImageFolder
from mindblip2.data.datasets.pairs import MultiImgCapDataLoader

ROOT = Path(__file__).resolve().parents[3]
WELL = [
    {"image": "0.png", "caption": ["a red seven", "a seven"], "image_id": "p_0"},
    {"image": "1.png", "caption": "one two three four five six seven eight nine ten", "image_id": "p_1"},
]
ILL = [
    {"image": "2.png", "caption": "lost", "image_id": "p_2"},
    {"image": "3.png", "caption": "cut off", "image_id": "p_3"},
    {"image": "0.png", "caption": "...!", "image_id": "p_0"},
    {"image": "4.png", "caption": "another seven", "image_id": "p_0"},
    {"image": "1.png", "caption": "one", "image_id": "p_1"},
    {"image": "1.png", "caption": "one", "image_id": "p_1"},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, size in enumerate(((40, 30), (20, 50), None, (9, 9), (60, 70))):
        if size:
            Image.new("RGB", size, (i, 9, 9)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:50])
    (tmp_path / "well.json").write_text(json.dumps(WELL))
    (tmp_path / "ill.json").write_text(json.dumps(WELL + ILL))
    return tmp_path


def config(file, **text):
    data = {
        "data_loader": {"annotation_files": [file], "image_dirs": ["."]},
        "text_transforms": {"max_length": 8, **text},
    }
    return RunConfig(train_dataset=data, output_dir="out")


def test_a_sound_data_set(folder, capsys):
    report = check_data(config("well.json"))
    part = report["train_dataset"]
    assert report["ok"] and (part["pictures"], part["captions"]) == (2, 3)
    assert part["sizes"] == {"width": {"min": 20, "median": 30}, "height": {"min": 30, "median": 40}}
    # [CLS] and [SEP] count
    assert part["caption_tokens"] == {4: 1, 5: 1, 12: 1} and part["truncated_captions"] == 1
    lines = capsys.readouterr().out
    assert "all is well" in lines and "missing" not in lines and "1 are cut at 8" in lines and "12 #" in lines
    assert json.loads(Path("out/check.json").read_text())["train_dataset"]["caption_tokens"] == {
        "4": 1,
        "5": 1,
        "12": 1,
    }


def test_everything_that_is_wrong_is_listed(folder, capsys):
    report = check_data(config("ill.json"))
    part = report["train_dataset"]
    assert not report["ok"]
    assert part["missing"] == ["2.png"] and [entry["image"] for entry in part["unreadable"]] == ["3.png"]
    assert "truncated or damaged" in part["unreadable"][0]["reason"]
    assert part["empty_captions"] == ["ill.json, row 0: '...!'"]  # rows of one picture are one picture
    assert [sorted(files) for files in part["image_id_collisions"]] == [["0.png", "4.png"]]
    assert part["repeated_rows"] == [{"image": "1.png", "caption": "one", "rows": 2}]
    lines = capsys.readouterr().out
    assert "something is wrong" in lines and "missing: 1\n    2.png" in lines


@pytest.mark.parametrize(
    "change", [{"image": "2.png"}, {"image": "3.png"}, {"caption": " . "}, {"image_id": "p_0"}]
)
def test_each_of_the_four_alone_is_wrong(folder, change):
    row = {"image": "4.png", "caption": "fine", "image_id": "p_9"}
    Path("one.json").write_text(json.dumps([*WELL, row]))
    assert check_data(config("one.json"))["ok"]  # control
    Path("one.json").write_text(json.dumps([*WELL, {**row, **change}]))
    assert not check_data(config("one.json"))["ok"]


def test_the_prompt_counts_in_length_but_does_not_fill_an_empty_caption(folder):
    part = check_data(config("well.json", prompt="a photo of "))["train_dataset"]
    assert part["caption_tokens"] == {7: 1, 8: 1, 15: 1}
    assert check_data(config("ill.json", prompt="a photo of "))["train_dataset"]["empty_captions"]


def test_data_sets_in_hand_are_checked(folder):
    for name in ("cat", "dog"):
        (folder / "set" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "set" / name / "1.png")
    (folder / "set" / "dog" / "2.png").write_bytes(b"<html>")
    pairs = MultiImgCapDataLoader(folder, ["well.json"], ["."], stage="eval")
    report = check_data(RunConfig(output_dir="out"), pairs, ImageFolder(folder / "set"))
    assert report["train_dataset"]["missing"] == [] and report["eval_dataset"]["labels"] == {
        "cat": 1,
        "dog": 2,
    }
    assert "an HTML page" in report["eval_dataset"]["unreadable"][0]["reason"] and not report["ok"]
    with pytest.raises(ConfigError, match="a list cannot be checked"):
        check_data(RunConfig(), [{"image": "x", "caption": "y"}])


def test_nothing_to_check_is_an_error():
    with pytest.raises(ConfigError, match="nothing to check: .*--train_dataset_dir"):
        check_data("blip2_stage1_classification")
    with pytest.raises(FileNotFoundError, match="no annotation file"):
        check_data(config("none.json"))


RUN = """
import runpy, sys
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("imported", "mindspore" in sys.modules)
"""


def test_the_command_line_checks_without_mindspore_and_exits_with_1(folder):
    def run(file):
        code = f"import sys; sys.argv[0] = {str(ROOT / 'run_blip2.py')!r}\n{RUN}"
        command = [
            sys.executable,
            "-c",
            code,
            "--config",
            "blip2_stage1_vit_g",
            "--run_mode",
            "check",
            "--output_dir",
            "out",
            "--train_dataset_dir",
            str(folder),
            "--train_dataset.data_loader.annotation_files",
            f"[{file}]",
            "--train_dataset.data_loader.image_dirs",
            "[.]",
        ]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )

    well, ill = run("well.json"), run("ill.json")
    assert (well.returncode, ill.returncode) == (0, 1), ill.stderr
    assert "imported False" in well.stdout and "something is wrong" in ill.stdout and "\r" not in well.stderr
    lost = run("lost.json")
    assert (
        lost.returncode == 1 and str(folder / "lost.json") in lost.stderr and "Traceback" not in lost.stderr
    )


def test_trainer_and_command_line_give_the_same_report(folder):
    from mindblip2 import Trainer

    run = config("ill.json")
    assert Trainer(args=run, task="contrastive_language_image_pretrain").check() == check_data(run)
    loader = MultiImgCapDataLoader(folder, ["well.json"], ["."])
    assert Trainer(
        task="contrastive_language_image_pretrain", model="blip2_digits", train_dataset=loader
    ).check()["ok"]
    made = run_blip2.run(
        [
            "--config",
            "blip2_digits",
            "--run_mode",
            "check",
            "--train_dataset_dir",
            str(folder),
            "--train_dataset.data_loader.type",
            "MultiImgCapDataLoader",
            "--output_dir",
            "out",
            "--train_dataset.data_loader.annotation_files",
            "[well.json]",
            "--train_dataset.data_loader.image_dirs",
            "[.]",
        ]
    )
    # the tokenizer's, which is less than the 32 of the text
    assert made["ok"] and made["train_dataset"]["max_length"] == 18
    assert load_config("blip2_digits").run_mode == "predict"


# ------------------------------------------------------------------------------------------------ texts that
def digits(**data):
    return load_config(
        "blip2_digits",
        {
            "output_dir": "out",
            "train_dataset.data_loader.type": "MultiImgCapDataLoader",
            "train_dataset.data_loader.annotation_files": [data["file"]],
            "train_dataset.data_loader.image_dirs": ["."],
        },
    )


def test_a8_unknown_tokens_are_counted_and_many_are_wrong(folder, capsys):
    Path("english.json").write_text(
        json.dumps(
            [{"image": "0.png", "caption": "a red seven"}, {"image": "1.png", "caption": "a blue one"}] * 5
            + [{"image": "1.png", "caption": "one red lorry"}]
        )
    )
    Path("chinese.json").write_text(
        json.dumps([{"image": "0.png", "caption": "一只红色的猫"}, {"image": "1.png", "caption": "a red 猫"}])
    )
    Path("most.json").write_text(
        json.dumps([{"image": "0.png", "caption": "a red 猫"}, {"image": "1.png", "caption": "a red one"}])
    )
    part = check_data(digits(file="english.json"))["train_dataset"]
    assert (
        part["unknown_tokens"] == 1
        and part["unknown_words"] == ["lorry"]
        and not part["unknown_tokens_above_limit"]
    )
    lines = capsys.readouterr().out
    assert (
        "all is well" in lines
        and "unknown to the tokenizer: 1 tokens, 3.0% (limit 5%), in words such as 'lorry'" in lines
    )
    report = check_data(digits(file="chinese.json"))
    assert not report["ok"] and report["train_dataset"]["unknown_captions"] == [
        "chinese.json, row 0: '一只红色的猫'"
    ]
    assert "something is wrong" in capsys.readouterr().out
    report = check_data(digits(file="most.json"))
    assert not report["ok"] and report["train_dataset"]["unknown_captions"] == []
    assert report["train_dataset"]["unknown_tokens_above_limit"] == ["猫"]


def test_a8_labels_of_a_data_set_are_checked(folder):
    for name in ("seven", "Seven_", "one"):
        (folder / "set" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "set" / name / "1.png")
    report = check_data(load_config("blip2_digits", {"output_dir": "out"}), None, ImageFolder(folder / "set"))
    assert (
        not report["ok"]
        and "'Seven ', 'seven' have the same tokens" in report["eval_dataset"]["labels_alike"][0]
    )
    (folder / "set" / "Seven_").rename(folder / "set" / "lorry")
    report = check_data(load_config("blip2_digits", {"output_dir": "out"}), None, ImageFolder(folder / "set"))
    assert "knows no token of 1 of 3 labels ('lorry')" in report["eval_dataset"]["labels_alike"][0]
    (folder / "set" / "lorry").rename(folder / "set" / "two")
    assert check_data(load_config("blip2_digits", {"output_dir": "out"}), None, ImageFolder(folder / "set"))[
        "ok"
    ]


def test_c5_check_takes_the_files_that_evaluation_takes(folder):
    """VQA's questions, which stage 2 is evaluated with, JSON Lines and tables."""

    def checked(preset, *files):
        where = "eval_dataset.data_loader"
        return check_data(
            load_config(
                preset,
                {
                    "output_dir": "out",
                    f"{where}.type": "MultiImgCapDataLoader",
                    f"{where}.dataset_dir": ".",
                    f"{where}.annotation_files": list(files),
                    f"{where}.image_dirs": ["."],
                },
            )
        )

    Path("vqa.json").write_text(
        json.dumps(
            [
                {"image": "0.png", "question": "how many digits are there?", "answer": ["one"]},
                {"image": "2.png", "question": "which digit is red?"},
            ]
        )
    )
    report = checked("itt_blip2_digits", "vqa.json")["eval_dataset"]
    assert (report["questions"], report["pictures"], report["without_answers"], report["missing"]) == (
        2,
        2,
        1,
        ["2.png"],
    )
    with pytest.raises(AnnotationError, match="these are questions, which stage 2 is evaluated with"):
        checked("blip2_digits", "vqa.json")
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in WELL))
    Path("rows.csv").write_text("image,caption\n0.png,a red seven\n1.png,one\n")
    assert (
        checked("blip2_digits", "rows.jsonl")["ok"]
        and checked("blip2_digits", "rows.csv")["eval_dataset"]["captions"] == 2
    )
