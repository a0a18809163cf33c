"""run_blip2.py, Trainer and pipeline give one answer, print the card's lines, and explain typical
mistakes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import pytest

import run_blip2
from mindblip2 import Trainer, pipeline
from mindblip2.config import ConfigError
from mindblip2.demo import scenes
from mindblip2.models.blip2_qformer import Blip2Classifier
from mindblip2.pipeline import ZeroShotImageClassificationPipeline

ROOT = Path(__file__).resolve().parent.parent
LABELS = ["three", "seven", "eight"]
TEMPLATE = "a handwritten {}"
PICTURE = str(ROOT / "docs" / "pictures" / "digits_captions.png")
BASE = ["--config", "blip2_digits", "--run_mode", "predict", "--mode", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    scenes.draw(folder, 48)
    return folder


@pytest.fixture(autouse=True)
def working_directory(tmp_path, monkeypatch):
    # other tests leave graph mode on, where every new model is compiled
    ms.set_context(mode=ms.PYNATIVE_MODE)
    monkeypatch.chdir(tmp_path)


def test_three_doors_one_answer(folder, capsys):
    files = sorted(folder.iterdir())[:3]
    piped = pipeline(
        "zero_shot_image_classification",
        model="blip2_digits",
        candidate_labels=LABELS,
        hypothesis_template=TEMPLATE,
    )([str(f) for f in files])
    trainer = Trainer(
        task="zero_shot_image_classification",
        model="blip2_digits",
        candidate_labels=LABELS,
        hypothesis_template=TEMPLATE,
    )
    trained = trainer.predict(input_data=[str(f) for f in files], top_k=3)
    ran = run_blip2.run(
        [
            *BASE,
            "--predict_data",
            *map(str, files),
            "--candidate_labels",
            *LABELS,
            "--hypothesis_template",
            TEMPLATE,
            "--top_k",
            "3",
        ]
    )
    assert piped == trained == ran
    assert piped != pipeline(
        "zero_shot_image_classification",
        model="blip2_digits",
        candidate_labels=LABELS,
        # control: the template counts
        hypothesis_template="a red {}",
    )([str(f) for f in files])


def test_predict_prints_the_lines_of_the_card_and_writes_its_file(folder, capsys):
    picture = str(sorted(folder.iterdir())[0])
    result = Trainer(
        task="zero_shot_image_classification",
        model="blip2_digits",
        candidate_labels=LABELS,
        hypothesis_template=TEMPLATE,
    ).predict(input_data=picture)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3] == f"output result is: {result}"
    assert lines[-2] == "output result is saved at: zero_shot_image_classification_result.txt"
    assert lines[-1] == ".........Predict Over!............."
    assert Path("zero_shot_image_classification_result.txt").read_text().strip() == str(result)
    # top_k is 1, as the card's
    assert len(result) == 1 and len(result[0]) == 1 and set(result[0][0]) == {"score", "label"}


def test_a_folder_is_predicted_with_a_picture_of_the_result(folder):
    result = run_blip2.run([*BASE, "--predict_data", str(folder), "--output_dir", "out"])
    assert len(result) == scenes.SHOWN
    assert Path("out/zero_shot_image_classification_result.png").stat().st_size > 10_000


def test_overrides_reach_the_configuration(folder):
    with pytest.raises(ConfigError, match="query_reduce"):
        run_blip2.run([*BASE, "--predict_data", str(folder), "--model.model_config.query_reduce", "mean"])
    with pytest.raises(ConfigError, match="did you mean 'query_reduce'"):
        run_blip2.run(
            [*BASE, "--predict_data", str(folder), "--options", "model.model_config.query_reduc=max"]
        )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["--config", "blip2_digit", "--run_mode", "predict"],
            ["no configuration 'blip2_digit'", "did you mean 'blip2_digits'"],
        ),
        (
            ["--config", "blip2_digits", "--predikt_data", "x"],
            ["unknown argument '--predikt_data'", "--predict_data"],
        ),
        (["--config", "blip2_digits", "--run_mode", "predict"], ["needs --predict_data"]),
        (["--config", "blip2_digits", "--predict_data", "nowhere.png"], ["nowhere.png"]),
        (
            ["--config", "blip2_digits", "--predict_data", PICTURE, "--load_checkpoint", "none.ckpt"],
            ["no checkpoint at"],
        ),
        (
            ["--config", "blip2_digits", "--run_mode", "train"],
            ["cannot train", "contrastive_language_image_pretrain"],
        ),
    ],
)
def test_a_typical_mistake_ends_with_one_clear_line(arguments, words):
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_blip2.py"), *arguments], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def test_missing_weights_name_the_file_and_the_command():
    with pytest.raises(
        FileNotFoundError, match=r"(?s)blip2_pretrained.pth.*eva_vit_g.pth.*convert_weight.py --torch_path"
    ):
        pipeline("zero_shot_image_classification", model="blip2_stage1_classification")


def test_unknown_tasks_and_options_are_named(folder):
    with pytest.raises(ValueError, match="no pipeline for task 'captioning'"):
        pipeline("captioning")
    with pytest.raises(ValueError, match="no task 'captioning'; there is: .*image_to_text_generation"):
        Trainer(task="captioning", model="blip2_digits")
    classify = ZeroShotImageClassificationPipeline("blip2_digits", candidate_labels=LABELS)
    with pytest.raises(TypeError, match="unknown option 'topk'"):
        classify(str(sorted(folder.iterdir())[0]), topk=1)


def test_the_pipeline_package_can_be_called_like_the_function():
    import mindblip2

    assert mindblip2.pipeline("zero_shot_image_classification", model="blip2_digits", candidate_labels=LABELS)


def test_a_few_steps_of_training_lower_the_loss():
    run = [
        "--config",
        "blip2_digits",
        "--run_mode",
        "train",
        "--mode",
        "1",
        "--trainer.type",
        "contrastive_language_image_pretrain",
        "--output_dir",
        "run",
        "--epochs",
        "1",
        "--batch_size",
        "8",
        "--train_dataset.data_loader.scenes",
        "96",
        "--lr_schedule.warmup_steps",
        "2",
        "--runner_config.log_every",
        "3",
    ]
    log = run_blip2.run(run)
    assert [entry["step"] for entry in log] == [3, 6, 9, 12]
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    assert Path("run/checkpoint/rank_0/blip2_digits.ckpt").is_file()
    assert len(Path("run/log/train.jsonl").read_text().splitlines()) == 4
    assert Path("run/log/loss_curve.png").stat().st_size > 5_000
    unmoved = run_blip2.run(
        [
            *run,
            "--output_dir",
            "unmoved",
            "--lr_schedule.learning_rate",
            "0",
            "--lr_schedule.warmup_lr_init",
            "0",
            # control: without a learning rate nothing is learnt
            "--lr_schedule.lr_end",
            "0",
        ]
    )
    assert abs(unmoved[-1]["loss"] - unmoved[0]["loss"]) < 0.3


def test_snippets_of_the_readmes_run(folder):
    picture = sorted(folder.iterdir())[0]
    Path("picture.png").write_bytes(picture.read_bytes())
    for name in ("README.md", "README_CN.md"):
        snippets = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)
        # those are run in tests/test_readme_stage2.py
        snippets = [one for one in snippets if "image_to_text_generation" not in one]
        assert len(snippets) >= 3
        for snippet in snippets:
            exec(compile(snippet, name, "exec"), {})


def test_the_evaluation_file_holds_the_figures(monkeypatch):
    from mindblip2.demo.scenes import labelled_sets

    few = [
        type(data)(data.name, data.pictures[::40], data.truths[::40], data.labels, data.template)
        for data in labelled_sets(48)
    ]
    trainer = Trainer(task="zero_shot_image_classification", model="blip2_digits", eval_dataset=few)
    figures = trainer.evaluate()
    assert figures["digit names"]["pictures"] == len(few[0].pictures)
    path = Path("output/digits/zero_shot_image_classification_evaluation.json")
    assert json.loads(path.read_text()) == figures
    asked, real = [], Blip2Classifier.match_probabilities
    monkeypatch.setattr(
        Blip2Classifier, "match_probabilities", lambda *inputs: asked.append(1) or real(*inputs)
    )
    matched = trainer.evaluate(use_itm=True)
    assert asked and json.loads(path.read_text()) == matched
