"""Questions answered on the way in training of stage 2: the figure of the evaluation, the best checkpoint by
it, an undisturbed run."""

import json
from pathlib import Path

import numpy as np
import pytest

from mindblip2.checkpoint.ckpt import Checkpoint
from mindblip2.config import load_config
from mindblip2.config.schema import ConfigError
from mindblip2.trainer import Trainer, caption_evaluator
from tests import stage2_small

FOLDER = Path("run/checkpoint/rank_0")
pytestmark = pytest.mark.usefixtures("here")


def configured(small, **changes):
    return load_config(
        small.yaml,
        {
            "output_dir": "run",
            "context.mode": 1,
            "generation.max_new_tokens": 3,
            "eval_dataset.batch_size": 3,
            "eval_step_interval": 1,
            "lr_schedule.learning_rate": 0.1,
            "runner_config.log_every": 1,
            "runner_config.keep_checkpoint_max": 9,
            "eval_dataset.data_loader.hypothesis_template": "Q: {} A:",
            **{key.replace("__", "."): value for key, value in changes.items()},
        },
    )


def asked(small, answers):
    return [
        {"image": path, "question": "What colour is it?", "answer": [answer] * 10}
        for path, answer in zip(small.pictures.values(), answers, strict=True)
    ]


def train(small, data=None, **changes):
    trainer = Trainer(
        args=configured(small, **changes),
        train_dataset=stage2_small.samples(small.pictures),
        eval_dataset=data,
    )
    return [entry for entry in trainer.train(small.ckpt) if "eval_seconds" in entry]


@pytest.fixture(scope="module")
def given(small, tmp_path_factory):
    """The answers after each of the four steps."""
    answers, real = [], caption_evaluator.ask
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("given"))
        patch.setattr(caption_evaluator, "ask", lambda *how: answers.append(real(*how)) or answers[-1])
        train(small, asked(small, ["x"] * 4))
    # else nothing below would be shown
    assert len(answers) == 4 and len({tuple(one) for one in answers}) > 1
    return answers


def test_the_best_checkpoint_is_the_one_with_the_best_answers(small, given, capsys):
    for step in (1, 2):
        wanted = given[step]
        accuracy = [
            entry["eval_accuracy"] for entry in train(small, asked(small, wanted), output_dir=f"run{step}")
        ]
        first = next(i for i, one in enumerate(given) if one == wanted)
        assert accuracy[step] == max(accuracy) and (accuracy[first] == 1 or "" in wanted)
        found = json.loads(Path(f"run{step}/checkpoint/rank_0/best.json").read_text())
        assert found["eval_accuracy"] == max(accuracy)
    assert "evaluation: answers to 4 questions, each as 'Q: {} A:'" in capsys.readouterr().out


def test_the_figure_is_that_of_the_evaluation_and_the_run_is_undisturbed(small, given):
    data = asked(small, given[3])
    last = train(small, data)[-1]["eval_accuracy"]
    figures = Trainer(args=configured(small), eval_dataset=data).evaluate(FOLDER / "step_0000004")
    assert figures["accuracy"] == last
    train(small, None, output_dir="alone", do_eval=False)
    one, other = (Checkpoint(f"{run}/checkpoint/rank_0/step_0000004/model.ckpt") for run in ("run", "alone"))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    earlier = Checkpoint("run/checkpoint/rank_0/step_0000003/model.ckpt")
    assert not all(np.array_equal(one[name], earlier[name]) for name in one)  # the control


def test_vqa_s_files_are_read(small):
    ids = {colour: i for i, colour in enumerate(small.pictures)}
    rows = [
        {"image": f"{colour}.png", "question": "What colour?", "answer": [colour], "question_id": i}
        for colour, i in ids.items()
    ]
    (small.folder / "asked.json").write_text(json.dumps(rows))
    files = {
        "eval_dataset__data_loader__dataset_dir": str(small.folder),
        "eval_dataset__data_loader__annotation_files": ["asked.json"],
        "eval_dataset__data_loader__image_dirs": ["."],
    }
    assert "eval_accuracy" in train(small, do_eval=True, **files)[-1]
    with pytest.raises(
        ConfigError,
        match="metric.type = 'CIDEr': expected accuracy, since what is evaluated is answers to 4 questions",
    ):
        train(small, do_eval=True, metric__type="CIDEr", **files)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"eval_dataset__data_loader__hypothesis_template": "a photo of"},
            "is 'a photo of', without {} for the question: set eval_dataset",
        ),
        ({"generation__max_new_tokens": 60}, "leave room for"),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(small, changes, words):
    with pytest.raises(ValueError, match=words):
        train(small, asked(small, ["x"] * 4), **changes)
    with pytest.raises(ConfigError, match="needs people's answers"):
        train(small, [{"image": path, "question": "What?"} for path in small.pictures.values()])
    with pytest.raises(ConfigError, match="metric.type = 'accuracy': expected loss"):
        train(
            small,
            [{"image": path, "caption": "a"} for path in small.pictures.values()],
            metric__type="accuracy",
        )
    assert not Path("run/checkpoint").exists()
