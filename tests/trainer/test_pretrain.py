"""Stage-1 training through its door: what is printed, written, resumed, and refused."""

import re

import numpy as np
import pytest
from PIL import Image

from mindblip2 import Blip2Qformer, Trainer
from mindblip2.checkpoint import training_state
from mindblip2.checkpoint.ckpt import Checkpoint
from mindblip2.checkpoint.pretrained import no_init
from mindblip2.config import load_config
from mindblip2.config.schema import ConfigError
from mindblip2.trainer import loop
from mindblip2.trainer.plan import needs
from mindblip2.trainer.tasks.pretrain import _memory_line, with_callbacks

SMALL = {
    "model.model_config.vision_config.num_hidden_layers": 1,
    "model.model_config.qformer_config.num_hidden_layers": 2,
    "context.mode": 1,
    "runner_config.batch_size": 2,
    "runner_config.epochs": 2,
    "runner_config.log_every": 1,
    "trainer.type": "contrastive_language_image_pretrain",
}


def pairs():
    rng = np.random.default_rng(0)
    words = ("red", "green", "blue", "pink", "white", "orange")
    return [
        {"image": Image.fromarray(rng.integers(0, 255, (48, 48, 3), np.uint8)), "caption": f"a {word} seven"}
        for word in words
    ]


def train(path, **changes):
    overrides = {key.replace("__", "."): value for key, value in changes.items()}
    trainer = Trainer(
        args=load_config("blip2_digits", {**SMALL, "output_dir": str(path), **overrides}),
        train_dataset=pairs(),
    )
    return trainer, trainer.train()


def weights(path):
    stored = Checkpoint(path)
    return {name: stored[name] for name in stored}


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    train(path)
    return path / "checkpoint" / "rank_0"


def test_a_python_dataset_is_trained_on_and_the_start_says_what_will_happen(tmp_path, capsys):
    trainer, log = train(tmp_path)
    out = capsys.readouterr().out
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    count = sum(p.size for p in trainer.model.trainable_params())
    assert (
        "6 steps of 2 pairs, 1 negatives for each pair" in out
        and f"trained parameters: {count:,} of {count:,}" in out
    )
    assert "memory: weights 0.00 GB" in out and "blip2_digits.ckpt" in out.splitlines()[-1]
    assert (tmp_path / "log" / "loss_curve.png").is_file()
    assert [one.name for one in training_state.saved(tmp_path / "checkpoint" / "rank_0")] == [
        "step_0000003",
        "step_0000006",
    ]


def test_held_out_data_is_evaluated_on_the_way(tmp_path, whole, capsys):
    config = load_config("blip2_digits", {**SMALL, "output_dir": str(tmp_path), "eval_dataset.k_test": 2})
    log = Trainer(args=config, train_dataset=pairs(), eval_dataset=pairs()[:4]).train()
    out = capsys.readouterr().out
    found = [entry for entry in log if "eval_agg_metrics" in entry]
    assert [entry["step"] for entry in found] == [3, 6] and {
        "eval_txt_r1",
        "eval_img_r_mean",
        "eval_seconds",
    } <= set(found[0])
    assert "evaluation: retrieval among 4 pictures and 4 texts" in out
    folder = tmp_path / "checkpoint" / "rank_0"
    assert (
        f"best checkpoint: {folder / training_state.best(folder)['checkpoint']} ({{'eval_agg_metrics': "
        in out
    )
    # as if there had been none
    assert same(weights(folder / "blip2_digits.ckpt"), weights(whole / "blip2_digits.ckpt"))


def test_evaluation_without_held_out_data_is_refused_before_the_training(tmp_path):
    with pytest.raises(
        ConfigError,
        match="do_eval needs held-out data: name them in eval_dataset.data_loader, or pass eval_dataset",
    ):
        train(tmp_path, do_eval=True, eval_dataset__data_loader__type="MultiImgCapDataLoader")
    assert not (tmp_path / "checkpoint").exists()


def test_an_interrupted_run_goes_on_where_it_was(tmp_path, whole, monkeypatch):
    add = loop.TrainingLog.add

    def interrupted(self, *arguments):
        if self.step == 4:
            raise KeyboardInterrupt
        return add(self, *arguments)

    monkeypatch.setattr(loop.TrainingLog, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    monkeypatch.setattr(loop.TrainingLog, "add", add)
    train(tmp_path, resume_training=True)
    folder = tmp_path / "checkpoint" / "rank_0"
    assert same(weights(folder / "blip2_digits.ckpt"), weights(whole / "blip2_digits.ckpt"))


def test_what_is_frozen_stays_in_the_file_it_came_from(tmp_path, whole, capsys):
    changes = {
        "model__model_config__freeze_vision": True,
        "load_checkpoint": str(whole / "blip2_digits.ckpt"),
    }
    trainer, _ = train(tmp_path, **changes)
    last = training_state.saved(tmp_path / "checkpoint" / "rank_0")[-1]
    assert (
        f"{last} (what was trained; the rest is in {whole / 'blip2_digits.ckpt'})" in capsys.readouterr().out
    )
    assert not [name for name in weights(last / "model.ckpt") if name.startswith("vit.")]
    everything, _ = train(tmp_path / "all", **changes, runner_config__save_trainable_only=False)
    assert [
        name
        for name in weights(
            training_state.saved(tmp_path / "all" / "checkpoint" / "rank_0")[-1] / "model.ckpt"
        )
        if name.startswith("vit.")
    ]
    for name, array in weights(last / "model.ckpt").items():
        assert np.array_equal(everything.model.parameters_dict()[name].asnumpy(), array), name


def test_warnings_before_a_run_that_can_learn_nothing(tmp_path, capsys):
    train(
        tmp_path,
        model__model_config__freeze_vision=True,
        runner_config__batch_size=1,
        runner_config__epochs=1,
    )
    out = capsys.readouterr().out
    assert (
        "the frozen ViT has random weights" in out and "with one pair per batch there are no negatives" in out
    )


def test_callbacks_of_mindformers_mean_what_they_meant():
    config = load_config("blip2_digits").replace(
        callbacks=[
            {"type": "MFLossMonitor", "per_print_times": 7},
            {"type": "SummaryMonitor"},
            {"type": "ObsMonitor"},
            {
                "type": "CheckpointMointor",
                "prefix": "x",
                "save_checkpoint_steps": 11,
                "keep_checkpoint_max": 2,
            },
        ]
    )
    runner = with_callbacks(config)
    assert (runner.log_every, runner.save_steps, runner.keep_checkpoint_max, runner.summary) == (
        7,
        11,
        2,
        True,
    )
    assert (
        runner.replace(log_every=50, save_steps=0, keep_checkpoint_max=3, summary=False)
        == config.runner_config
    )
    with pytest.raises(
        ValueError, match=r"callbacks\[0\]: unknown type 'LossMonitor'; .* known: CheckpointMointor"
    ):
        with_callbacks(config.replace(callbacks=[{"type": "LossMonitor"}]))


def test_the_memory_that_is_said_is_the_planner_s():
    config = load_config("blip2_stage1_vit_g")
    with no_init():
        model = Blip2Qformer(config.model.model_config)
    planned = needs(config.replace(context={"device_target": "CPU"}), 1, 1)
    line = _memory_line(model, model.trainable_params(), config)
    held = (
        planned.trained + planned.frozen,
        planned.gradients + planned.moments[False],
        planned.activations[False],
    )
    assert re.findall(r"([\d.]+) GB", line) == [f"{one / 1e9:.2f}" for one in held]
    # the control
    assert line != _memory_line(
        model, model.trainable_params(), config.replace(runner_config={"batch_size": 3})
    )


def test_summary_files_are_written_when_asked_for(tmp_path):
    train(tmp_path, runner_config__summary=True, runner_config__epochs=1)
    assert list((tmp_path / "log" / "summary").glob("*"))


# ------------------------------------------------------------------------------------------------ refusals an
@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"processor__tokenizer__vocab_file": ""}, "the tokenizer knows 30523 tokens, the model 120"),
        (
            {"processor__image_processor__image_size": 56},
            "image_size = 56, but model.model_config.vision_config.image_size = 48",
        ),
        (
            {
                "model__model_config__qformer_config__max_position_embeddings": 18,
                "train_dataset__text_transforms__max_length": 32,
                "processor__tokenizer__max_length": 20,
            },
            "texts of 20 tokens, but the model has 18 positions",
        ),
        ({"optimizer__type": "sgd"}, "'sgd': expected one of 'adamw'"),
        ({"optimizer__max_grad_norm": 0.0}, "max_grad_norm = 0.0: expected a"),
        ({"optimizer__beta2": 1.0}, "beta2 = 1.0: expected from 0 to less than 1"),
        ({"layer_decay": 1.5}, "layer_decay = 1.5: expected a"),
    ],
)
def test_what_does_not_fit_together_is_said_before_anything_is_computed(tmp_path, changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        train(tmp_path, **changes)
    assert not (tmp_path / "checkpoint").exists()


def test_samples_without_a_length_are_refused(tmp_path):
    config = load_config("blip2_digits", {**SMALL, "output_dir": str(tmp_path)})
    with pytest.raises(ValueError, match="the training samples are a generator without a length"):
        Trainer(args=config, train_dataset=(one for one in pairs())).train()


def test_of_several_captions_one_is_drawn(tmp_path):
    config = load_config("blip2_digits", {**SMALL, "output_dir": str(tmp_path), "runner_config.epochs": 1})
    samples = [{**one, "caption": [one["caption"], "a handwritten two"]} for one in pairs()]
    assert len(Trainer(args=config, train_dataset=samples).train()) == 3


def test_a_warm_up_longer_than_the_run_is_warned_of(tmp_path, capsys):
    train(tmp_path, runner_config__epochs=1, lr_schedule__warmup_steps=5000)
    assert "warning: the run ends within the warm-up of 5000 steps" in capsys.readouterr().out


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("MS_WORKER_NUM", "2")
    trainer = Trainer(task="contrastive_language_image_pretrain", model="blip2_digits")
    with pytest.raises(
        ConfigError,
        match="started on 2 processes, but use_parallel is false.*data_parallel 2 x model_parallel 1",
    ):
        trainer.train()


def test_a_mesh_that_does_not_fit_is_refused_with_those_that_do(monkeypatch):
    trainer = Trainer(task="contrastive_language_image_pretrain", model="blip2_digits")
    with pytest.raises(
        ConfigError,
        match="makes 4 processes, but this is one process, started without msrun.  Meshes that fit 1",
    ):
        trainer.set_parallel_config(data_parallel=2, model_parallel=2)
    monkeypatch.setenv("MS_WORKER_NUM", "3")
    with pytest.raises(
        ConfigError,
        match=r"makes 2 processes, but 3 were started.  Meshes that fit 3: data_parallel 3 x model_",
    ):
        trainer.set_parallel_config(data_parallel=1, model_parallel=2)
    with pytest.raises(ConfigError, match=r"model_parallel = 3 does not divide the ViT's heads \(4\)"):
        trainer.set_parallel_config(data_parallel=1, model_parallel=3)
    with pytest.raises(ConfigError, match="data_parallel = 0"):
        trainer.set_parallel_config(data_parallel=0)
