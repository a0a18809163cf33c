"""A run that is killed and resumed is the run that was not; what a run leaves behind; whom it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mindblip2.checkpoint import training_state
from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError
from mindblip2.checkpoint.pretrained import fingerprint
from mindblip2.trainer.loop import fit
from tests.trainer.small import Batches, run_config, small_model

ROOT = Path(__file__).resolve().parents[2]


def folder_of(path):
    return path / "checkpoint" / "rank_0"


def arrays(model):
    return {name: p.asnumpy().copy() for name, p in model.parameters_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def resumed(path, config, batches, **changes):
    model = small_model(**changes)
    newest = training_state.find(True, folder_of(path))
    model.load_checkpoint(newest)
    fit(model, batches, config, path, newest)
    return model


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four epochs of three steps that nothing disturbs: (folder, weights, log)."""
    path, model = tmp_path_factory.mktemp("whole"), small_model()
    log = fit(
        model, Batches(), run_config(runner_config__epochs=4, runner_config__keep_checkpoint_max=2), path
    )
    return path, arrays(model), log


# ------------------------------------------------------------------------------------------------ resume
class Interrupted(Batches):
    def epoch(self, epoch, start_step=0):
        for place, batch in enumerate(super().epoch(epoch, start_step), start_step):
            if (epoch, place) == (2, 1):
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("every", [0, 1, 2], ids=["per epoch", "each step", "within epochs"])
def test_a_run_that_is_resumed_is_bit_for_bit_the_run_that_was_not(tmp_path, whole, every):
    config = run_config(runner_config__epochs=4, runner_config__save_steps=every)
    with pytest.raises(KeyboardInterrupt):
        fit(small_model(), Interrupted(), config, tmp_path)
    model = resumed(tmp_path, config, Batches())
    assert same(arrays(model), whole[1])
    steps = [json.loads(line)["step"] for line in (tmp_path / "log" / "train.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 12


def test_the_comparison_notices_another_random_state(tmp_path, whole):
    model = small_model()
    fit(model, Batches(), run_config(runner_config__epochs=4, seed=43), tmp_path)
    assert not same(arrays(model), whole[1])


def test_accumulated_batches_end_with_the_epoch(tmp_path):
    """Five batches in twos: the third update of an epoch has one batch, and the next epoch begins with a new
    one."""
    config = run_config(
        runner_config__epochs=2, runner_config__accumulation_steps=2, runner_config__log_every=1
    )
    assert len(fit(small_model(), Batches(5), config, tmp_path)) == 6


# ------------------------------------------------------------------------------------------------ kill -9
RUN = """
import sys
from mindblip2.checkpoint import training_state
from mindblip2.trainer.loop import fit
from tests.trainer.small import Batches, run_config, small_model
path = sys.argv[1]
config = run_config(runner_config__epochs=12, runner_config__save_steps=1, runner_config__log_every=1)
model, newest = small_model(), None
if training_state.saved(path + "/checkpoint/rank_0"):
    newest = training_state.find(True, path + "/checkpoint/rank_0")
    model.load_checkpoint(newest)
print("begins", flush=True)
fit(model, Batches(), config, path, newest)
model.save_checkpoint(path + "/end.ckpt")
"""


def started(path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3"}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=path,
    )
    assert process.stdout.readline() == "begins\n"
    return process


def test_a_run_that_is_killed_again_and_again_loses_nothing(tmp_path):
    """Every step is saved, so most kills fall into a save."""
    killed, whole, last = tmp_path / "killed", tmp_path / "whole", 0
    killed.mkdir(), whole.mkdir()
    assert started(whole).wait() == 0
    rng = np.random.default_rng(8)
    for _ in range(5):
        process = started(killed)
        deadline = time.time() + 60
        while (
            len(training_state.saved(folder_of(killed))) == 0
            or int(training_state.saved(folder_of(killed))[-1].name[5:]) < last + 2
        ):
            assert time.time() < deadline and process.poll() is None
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        newest = training_state.saved(folder_of(killed))[-1]
        assert int(newest.name[5:]) >= last + 2
        last = int(newest.name[5:])
        small_model().load_checkpoint(newest)  # each file is whole
        logged = [
            json.loads(line)["step"]
            for line in (killed / "log" / "train.jsonl").read_text().splitlines()[:-1]
        ]
        assert logged == list(range(1, len(logged) + 1)) and len(logged) >= last - 1
        assert all(Checkpoint(one / "optimizer.ckpt") for one in training_state.saved(folder_of(killed)))
    assert started(killed).wait() == 0
    assert (killed / "end.ckpt").read_bytes() == (whole / "end.ckpt").read_bytes()


# ------------------------------------------------------------------------------------------------ what is kep
def test_old_checkpoints_go_and_the_best_stays(whole):
    path, _, _ = whole
    names = [one.name for one in training_state.saved(folder_of(path))]
    best = training_state.best(folder_of(path))
    assert names[-2:] == ["step_0000009", "step_0000012"] and best["checkpoint"] in names
    assert len(names) == len({*names[-2:], best["checkpoint"]})
    state = training_state.read_state(folder_of(path) / best["checkpoint"])
    assert state["loss"] == best["loss"]
    assert not [one for one in folder_of(path).iterdir() if one.name.startswith(".")]


def test_the_best_survives_the_rotation(tmp_path):
    model = small_model()
    from mindblip2.config import OptimizerConfig
    from mindblip2.trainer.optimizer import AdamW

    optimizer = AdamW(model.trainable_params(), OptimizerConfig())
    for step in range(1, 5):
        path = training_state.save(tmp_path, model, optimizer, {"step": step}, keep=2)
        if step == 1:
            training_state.record_best(tmp_path, path, "loss", 0.5)
    assert [one.name for one in training_state.saved(tmp_path)] == [
        "step_0000001",
        "step_0000003",
        "step_0000004",
    ]


def test_the_log_holds_the_curves_of_the_run(whole):
    path, _, log = whole
    assert [entry["step"] for entry in log] == [2, 4, 6, 8, 10, 12]
    assert {
        "itc",
        "itm",
        "lm",
        "i2t_acc",
        "t2i_acc",
        "itm_acc",
        "temp",
        "lr",
        "grad_norm",
        "samples_per_second",
    } <= set(log[0])
    assert all(
        entry["loss"] == pytest.approx(entry["itc"] + entry["itm"] + entry["lm"], abs=1e-5) for entry in log
    )
    assert (path / "log" / "loss_curve.png").stat().st_size > 5000


# ------------------------------------------------------------------------------------------------ what is not
@pytest.fixture
def half_trained(tmp_path):
    """(folder, base file): a run with a frozen ViT that came from a file, so that its checkpoints hold the
    rest only."""
    base = tmp_path / "base.ckpt"
    model = small_model(freeze_vision=True)
    model.save_checkpoint(base)
    kept = {name: p.asnumpy() for name, p in model.parameters_dict().items() if not p.requires_grad}
    fit(
        model,
        Batches(),
        run_config(runner_config__epochs=1),
        tmp_path,
        None,
        {"path": str(base), "crc32": fingerprint(kept, kept.get)},
    )
    return folder_of(tmp_path) / "step_0000003", base, arrays(model)


def test_what_is_frozen_is_saved_by_reference_and_found_again(half_trained):
    checkpoint, _, weights = half_trained
    assert not [name for name in Checkpoint(checkpoint / "model.ckpt") if name.startswith("vit.")]
    model = small_model(freeze_vision=True)
    model.load_checkpoint(checkpoint)
    assert same(arrays(model), weights)
    other = small_model()
    other.load_checkpoint(checkpoint / "model.ckpt")  # the file within the folder does as well
    assert same(arrays(other), weights)


def test_resuming_computes_the_fingerprint_of_what_is_frozen_once(half_trained, monkeypatch):
    from mindblip2.checkpoint import pretrained
    from mindblip2.trainer.tasks import pretrain

    checkpoint, base, _ = half_trained
    counted, record = [], training_state.read_state(checkpoint)["frozen"]
    for module in (pretrained, pretrain):
        monkeypatch.setattr(
            module, "fingerprint", lambda names, read: counted.append(len(names)) or fingerprint(names, read)
        )
    assert (
        pretrain.starting_weights(small_model(freeze_vision=True), run_config(), None, checkpoint) == record
    )
    assert len(counted) == 1
    assert pretrain.starting_weights(small_model(freeze_vision=True), run_config(), str(base), None) == record
    assert len(counted) == 2  # a new run: nobody has counted yet
    more = pretrain.starting_weights(
        small_model(freeze_vision=True, frozen=["ln_vision.*"]), run_config(), None, checkpoint
    )
    # something else is frozen now
    assert counted[2:] == [counted[0], counted[0] + 2] and more["crc32"] != record["crc32"]


def test_a_run_that_starts_from_a_checkpoint_names_the_file_behind_it(half_trained):
    from mindblip2.checkpoint.pretrained import frozen_record

    checkpoint, base, weights = half_trained
    assert frozen_record(checkpoint)["path"] == str(base) and frozen_record(base) is None
    model = small_model(freeze_vision=True)
    model.load_checkpoint(checkpoint, checkpoint)  # --load_checkpoint FOLDER --resume_training true
    assert same(arrays(model), weights)


def test_the_folder_of_a_run_is_no_checkpoint(half_trained):
    with pytest.raises(
        CheckpointError, match="holds the checkpoints of a run, the newest step_0000003: give one of them"
    ):
        small_model().load_checkpoint(half_trained[0].parent)


def test_another_or_a_missing_frozen_file_is_refused(half_trained, tmp_path):
    checkpoint, base, weights = half_trained
    moved = base.rename(tmp_path / "moved.ckpt")
    model = small_model(freeze_vision=True)
    with pytest.raises(CheckpointError, match="base.ckpt, which is not there: give the file as frozen_path"):
        model.load_checkpoint(checkpoint)
    model.load_checkpoint(checkpoint, moved)
    assert same(arrays(model), weights)
    other = small_model(freeze_vision=True)
    other.vit.blocks[0].norm1.gamma.set_data(other.vit.blocks[0].norm1.gamma * 1.001)
    other.save_checkpoint(base)
    with pytest.raises(CheckpointError, match="is not the file that .* was trained on: its weights differ"):
        model.load_checkpoint(checkpoint)


# ------------------------------------------------------------------------------------------------ refusals
def test_a_folder_with_another_run_is_not_trained_into(whole):
    path, _, _ = whole
    before = sorted(one.name for one in folder_of(path).iterdir())
    with pytest.raises(
        CheckpointError, match="holds checkpoints of another run, the newest step_0000012: go on with it by"
    ):
        fit(small_model(), Batches(), run_config(), path)
    assert sorted(one.name for one in folder_of(path).iterdir()) == before


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"seed": 7}, "seed = 42, now 7"),
        ({"runner_config__accumulation_steps": 2}, "epoch_steps = 3, now 2"),
        ({"optimizer__beta2": 0.5}, "optimizer.beta2 = 0.98, now 0.5"),
        ({"train_dataset__use_image_id": False}, "train_dataset.use_image_id = True"),
    ],
)
def test_a_run_with_another_configuration_is_not_resumed(whole, changes, complaint):
    with pytest.raises(CheckpointError, match=complaint):
        resumed(whole[0], run_config(**{"runner_config__epochs": 4, **changes}), Batches())


def test_what_lies_elsewhere_or_is_read_faster_may_differ(tmp_path, whole):
    import shutil

    shutil.copytree(whole[0], tmp_path / "moved")
    config = run_config(
        runner_config__epochs=4,
        train_dataset__num_parallel_workers=1,
        train_dataset__data_loader__dataset_dir="/elsewhere",
    )
    assert same(arrays(resumed(tmp_path / "moved", config, Batches())), whole[1])


def test_resuming_from_an_older_checkpoint_keeps_the_later_ones_aside(tmp_path, whole):
    config = run_config(
        runner_config__epochs=4, runner_config__save_steps=2, runner_config__keep_checkpoint_max=9
    )
    fit(small_model(), Batches(), config, tmp_path)
    folder, model = folder_of(tmp_path), small_model()
    (folder / ".partial_step_0000099").mkdir()
    model.load_checkpoint(folder / "step_0000006")
    fit(model, Batches(), config, tmp_path, folder / "step_0000006")
    names = sorted(one.name for one in folder.iterdir())
    assert [name for name in names if name.startswith("earlier")] == [
        f"earlier_step_00000{n}" for n in ("08", "10", "12")
    ]
    assert [one.name for one in training_state.saved(folder)][-3:] == [
        "step_0000008",
        "step_0000010",
        "step_0000012",
    ]
    assert not [name for name in names if name.startswith(".")] and same(arrays(model), whole[1])


def test_nothing_to_resume_says_so(tmp_path, whole):
    with pytest.raises(CheckpointError, match="nothing to resume: .* holds no checkpoint"):
        training_state.find(True, tmp_path)
    with pytest.raises(CheckpointError, match="is no checkpoint of a training run"):
        training_state.find(str(tmp_path), tmp_path)
    assert training_state.find(str(folder_of(whole[0])), tmp_path).name == "step_0000012"


def test_moments_of_another_model_are_refused(whole):
    from mindblip2.config import OptimizerConfig
    from mindblip2.trainer.optimizer import AdamW

    model = small_model(frozen=["qformer.*"])
    with pytest.raises(
        CheckpointError, match="belongs to another model or to other trained parameters: .* first moment1"
    ):
        training_state.restore_optimizer(
            folder_of(whole[0]) / "step_0000012", AdamW(model.trainable_params(), OptimizerConfig())
        )
