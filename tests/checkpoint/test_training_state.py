"""Damaged checkpoints of a training: one line that names the file and the way on; and what may change when a
run goes on."""

import errno
import json
import logging
import re
import shutil

import numpy as np
import pytest

from mindblip2 import file_io
from mindblip2.checkpoint import training_state
from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError, write_checkpoint
from mindblip2.file_io import DiskFullError, write_json
from mindblip2.trainer import loop
from mindblip2.trainer.loop import fit
from tests.trainer.small import Batches, held_out_losses, run_config, small_model
from tests.trainer.test_loop import arrays, folder_of, resumed, same


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs of three steps, with every checkpoint."""
    path, model = tmp_path_factory.mktemp("trained"), small_model()
    fit(model, Batches(), run_config(runner_config__save_steps=1, runner_config__keep_checkpoint_max=9), path)
    return path, arrays(model)


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path / "run")
    return tmp_path / "run"


def change_state(path, **changes):
    state = json.loads((path / "state.json").read_text())
    write_json(
        path / "state.json", {name: value for name, value in {**state, **changes}.items() if value is not ...}
    )


# ------------------------------------------------------------------------------------------------ damaged fil
@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda file: file.write_bytes(file.read_bytes()[:200]), "is not the state of a training run: "),
        (lambda file: file.write_bytes(b""), "it is empty"),
        (lambda file: file.write_text("[1]"), "holds a list, expected an object"),
        (
            lambda file: change_state(file.parent, step=...),
            "step is nothing, expected a whole number of steps",
        ),
        (
            lambda file: change_state(file.parent, loss_scale=...),
            'loss_scale is nothing, expected an object with "value" and "good"',
        ),
        (lambda file: change_state(file.parent, loss_scale={"value": "1"}), "loss_scale is "),
        (
            lambda file: change_state(file.parent, frozen="x.ckpt"),
            "frozen is 'x.ckpt', expected null or an object with",
        ),
        (
            lambda file: change_state(file.parent, judged=[1]),
            r"judged is \[1\], expected an object of numbers",
        ),
        (lambda file: change_state(file.parent, window=3), "window is 3"),
    ],
)
def test_b6_a_damaged_state_is_one_line_with_the_checkpoint_before_it(copy, damage, said):
    folder = folder_of(copy)
    # negative control: nothing is wrong with it
    assert training_state.find(True, folder).name == "step_0000006"
    damage(folder / "step_0000006" / "state.json")
    with pytest.raises(CheckpointError, match=said) as caught:
        training_state.find(True, folder)
    line = str(caught.value)
    assert "\n" not in line and str(folder / "step_0000006" / "state.json") in line
    assert f"resume from the checkpoint before it: --resume_training {folder / 'step_0000005'}" in line
    assert training_state.find(str(folder / "step_0000005"), folder).name == "step_0000005"


@pytest.mark.parametrize("name", ["model.ckpt", "optimizer.ckpt"])
def test_b6_a_damaged_or_missing_file_of_weights_names_the_checkpoint_before_it(copy, name):
    file = folder_of(copy) / "step_0000006" / name
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=f"{name} is truncated.* --resume_training .*step_0000005"):
        training_state.find(True, folder_of(copy))
    file.unlink()
    with pytest.raises(
        CheckpointError, match=f"no checkpoint at .*{name}.* --resume_training .*step_0000005"
    ):
        training_state.find(True, folder_of(copy))


@pytest.mark.parametrize(
    "note", ["", "{", "[]", '{"checkpoint": 3}', '{"checkpoint": "step_0000099", "loss": 1}', '{"loss": "x"}']
)
def test_b6_a_damaged_note_of_the_best_is_made_again(copy, note, caplog):
    folder = folder_of(copy)
    right = training_state.best(folder)
    (folder / training_state.BEST).write_text(note)
    with caplog.at_level(logging.WARNING):
        fit(
            small_model(),
            Batches(),
            run_config(runner_config__save_steps=1, runner_config__keep_checkpoint_max=9),
            copy,
            folder / "step_0000006",
        )
    assert (
        training_state.best(folder) == right
        and "best.json is damaged, or names a checkpoint that is not there" in caplog.text
    )


def test_b6_a_damaged_older_checkpoint_does_not_block_the_newest(copy, caplog):
    (folder_of(copy) / "step_0000002" / "state.json").write_text("")
    resumed(copy, run_config(runner_config__save_steps=1, runner_config__keep_checkpoint_max=9), Batches())
    assert "step_0000002/state.json is not the state of a training run" in caplog.text


@pytest.mark.parametrize("step", [3, 999, -1, 3.5, None, True, "6"])
def test_a12_a_step_that_is_not_that_of_the_folder_is_refused(copy, step):
    path = folder_of(copy) / "step_0000006"
    change_state(path, step=step)
    with pytest.raises(
        CheckpointError,
        match=f"{re.escape(str(path / 'state.json'))} is damaged.*step is {step!r}, expected .*"
        "--resume_training .*step_0000005",
    ):
        training_state.read_state(path)
    change_state(path, step=6)
    assert training_state.read_state(path)["step"] == 6


def test_a12_the_first_checkpoint_has_none_before_it_and_other_names_of_folders_are_free(copy):
    folder = folder_of(copy)
    (folder / "step_0000001").rename(folder / "mine")
    assert training_state.read_state(folder / "mine")["step"] == 1
    change_state(folder / "step_0000002", step=1)
    with pytest.raises(
        CheckpointError,
        match="step is 1, expected 2, as step_0000002 says; there is no checkpoint before it: resume",
    ):
        training_state.read_state(folder / "step_0000002")


# ------------------------------------------------------------------------------------------------ changes (C6
def test_c6_what_does_not_change_data_or_model_may_change_and_is_printed(copy, capsys):
    changes = {
        "lr_schedule__learning_rate": 2e-5,
        "optimizer__max_grad_norm": 0.5,
        "runner_config__epochs": 3,
        "lr_schedule__warmup_steps": 1,
        "runner_config__save_steps": 2,
        "runner_config__log_every": 1,
        "train_dataset__num_parallel_workers": 1,
    }
    resumed(copy, run_config(runner_config__keep_checkpoint_max=9, **changes), Batches())
    printed = capsys.readouterr().out
    for line in (
        "resumed from",
        "step 6 of 9",
        "lr_schedule.learning_rate 0.001 -> 2e-05",
        "optimizer.max_grad_norm 1.0 -> 0.5",
        "changed: epochs 2 -> 3",
        "changed: total_steps 6 -> 9",
        "changed: save_steps 1 -> 2",
        "changed: log_every 2 -> 1",
        "lr_schedule.warmup_steps 2 -> 1",
        "num_parallel_workers",
    ):
        assert line in printed, line
    assert [one.name for one in training_state.saved(folder_of(copy))][-2:] == [
        "step_0000008",
        "step_0000009",
    ]
    entries = [json.loads(line) for line in (copy / "log" / "train.jsonl").read_text().splitlines()]
    assert entries[-1]["step"] == 9 and max(entry["lr"] for entry in entries if entry["step"] > 6) <= 2e-5


def test_c6_nothing_is_printed_where_nothing_changed(copy, capsys):
    resumed(copy, run_config(runner_config__save_steps=1, runner_config__keep_checkpoint_max=9), Batches())
    assert "changed" not in capsys.readouterr().out


def test_c6_what_changes_the_data_or_the_model_is_refused_with_all_its_keys(copy):
    config = run_config(seed=7, optimizer__beta2=0.5, lr_schedule__learning_rate=2e-5)
    with pytest.raises(
        CheckpointError, match="seed = 42, now 7; optimizer.beta2 = 0.98, now 0.5: these decide the model or"
    ):
        resumed(copy, config, Batches())


def test_c6_fewer_steps_than_have_been_made_are_refused(copy):
    with pytest.raises(
        CheckpointError, match="has made 6 steps, but the run is to have 3: raise runner_config.epochs"
    ):
        resumed(copy, run_config(runner_config__epochs=1), Batches())


class Poisoned(Batches):
    """NaN in the pictures of step ``place`` of epoch 1."""

    def epoch(self, epoch, start_step=0):
        for place, batch in enumerate(super().epoch(epoch, start_step), start_step):
            if (epoch, place) == (1, 1):
                batch["image"] = batch["image"] * np.float32("nan")
            yield batch


def test_c6_after_nan_the_last_good_checkpoint_and_the_command_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv",
        [
            "run_blip2.py",
            "--config",
            "x.yaml",
            "--lr_schedule.learning_rate",
            "0.001",
            "--resume_training",
            "true",
        ],
    )
    config = run_config(runner_config__save_steps=1, runner_config__keep_checkpoint_max=9)
    with pytest.raises(FloatingPointError) as caught:
        fit(small_model(), Poisoned(), config, tmp_path)
    last = folder_of(tmp_path) / "step_0000004"
    assert str(caught.value).startswith(
        "step 5: loss_it"
    ) and f"the last good checkpoint from before the divergence is {last};" in str(caught.value)
    assert str(caught.value).endswith(
        f"python run_blip2.py --config x.yaml --resume_training {last} --lr_schedule.learning_rate 0.0005"
    )


def test_c6_a_checkpoint_that_has_diverged_is_not_a_good_one(copy):
    folder = folder_of(copy)
    assert training_state.last_good(folder).name == "step_0000006"
    change_state(folder / "step_0000006", loss=1e6)
    assert training_state.last_good(folder).name == "step_0000005"
    stored = Checkpoint(folder / "step_0000005" / "model.ckpt")
    entries = [(name, stored.types[name], stored[name]) for name in stored]
    entries[3][2].reshape(-1)[0] = np.nan
    write_checkpoint(folder / "step_0000005" / "model.ckpt", entries)
    assert training_state.last_good(folder).name == "step_0000004"
    assert training_state.last_good(folder.parent) is None


# ------------------------------------------------------------------------------------------------ full disk (
def fills_up(monkeypatch, after, name):
    """os.fsync fails as on a full disk for the ``after``-th file called ``name``."""
    calls, replace = [], file_io.os.fsync

    def fsync(handle):
        path = file_io.os.readlink(f"/proc/self/fd/{handle}")
        if f".{name}." in path:
            calls.append(path)
            if len(calls) == after:
                raise OSError(errno.ENOSPC, "No space left on device")
        return replace(handle)

    monkeypatch.setattr(file_io.os, "fsync", fsync)


def test_b10_a_full_disk_names_path_bytes_last_checkpoint_and_command(tmp_path, monkeypatch, trained):
    monkeypatch.setattr("sys.argv", ["run_blip2.py", "--config", "x.yaml"])
    config = run_config(runner_config__save_steps=1, runner_config__keep_checkpoint_max=9)
    with monkeypatch.context() as patch, pytest.raises(DiskFullError) as caught:
        fills_up(patch, 3, "optimizer.ckpt")
        fit(small_model(), Batches(), config, tmp_path)
    folder, said = folder_of(tmp_path), str(caught.value)
    size = sum((folder / "step_0000002" / name).stat().st_size for name in ("model.ckpt", "optimizer.ckpt"))
    needed = int(re.search(r"A checkpoint of this run takes about ([\d,]+) bytes", said)[1].replace(",", ""))
    assert 0.8 * size < needed <= size
    assert (
        str(folder / "step_0000003" / "optimizer.ckpt") in said
        and f"the last good checkpoint is {folder / 'step_0000002'};" in said
    )
    assert "go on with: python run_blip2.py --config x.yaml --resume_training true" in said
    assert not list(folder.glob(".*")) and [one.name for one in training_state.saved(folder)] == [
        "step_0000001",
        "step_0000002",
    ]
    assert same(arrays(resumed(tmp_path, config, Batches())), trained[1])  # when there is room


class FullLog:
    """A log file on a full disk."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    flush = close = write


def test_b10_a_full_disk_under_the_log_is_said_too(tmp_path, monkeypatch):
    class TrainingLog(loop.TrainingLog):
        def _write(self, entry):
            if self.step == 4:
                self._file.close()
                self._file = FullLog()
                self._file.close = lambda: self._file.write("")
            super()._write(entry)

    monkeypatch.setattr(loop, "TrainingLog", TrainingLog)
    with pytest.raises(
        DiskFullError,
        match=r"No space left.*the last good checkpoint is .*step_0000003; .*resume_training = true.*"
        r"train.jsonl",
    ):
        fit(small_model(), Batches(), run_config(), tmp_path)


# ------------------------------------------------------------------------------------------------ losses acro
def test_a_figure_that_is_not_finite_decides_nothing(tmp_path, caplog):
    model, config = small_model(), run_config(runner_config__epochs=1)
    examined = held_out_losses(model, config)
    examined.figures = lambda: {"loss": float("nan")}
    fit(model, Batches(), config, tmp_path, held_out=examined)
    assert training_state.best(folder_of(tmp_path)) == {} and "eval_loss is nan after step 3" in caplog.text
