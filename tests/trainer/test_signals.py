"""Signals, and two trainings in one folder: a training that is stopped loses nothing, and one that is running
is not disturbed."""

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mindblip2.checkpoint import training_state
from mindblip2.checkpoint.pretrained import save_unsharded
from mindblip2.config.schema import ConfigError
from mindblip2.distributed import comm
from mindblip2.trainer import output_lock, signals
from mindblip2.trainer.loop import fit
from mindblip2.trainer.output_lock import training_lock
from tests.trainer.small import Batches, held_out_losses, run_config, small_model
from tests.trainer.test_loop import ROOT, arrays, folder_of, resumed, same


@pytest.fixture(autouse=True)
def handlers():
    """Python's own handlers: a shell lets what it starts in the background ignore SIGINT."""
    before = (
        signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.signal(signal.SIGTERM, signal.SIG_DFL),
    )
    yield
    assert (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    signal.signal(signal.SIGINT, before[0]), signal.signal(signal.SIGTERM, before[1])


class Signalled(Batches):
    """This process gets ``numbers`` while the batch for step 5 is made."""

    def __init__(self, *numbers):
        super().__init__()
        self.numbers = numbers

    def epoch(self, epoch, start_step=0):
        for place, batch in enumerate(super().epoch(epoch, start_step), start_step):
            if (epoch, place) == (1, 1):
                for number in self.numbers:
                    os.kill(os.getpid(), number)
            yield batch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of three epochs of three steps that nothing disturbs: (folder, weights)."""
    path, model = tmp_path_factory.mktemp("whole"), small_model()
    fit(model, Batches(), run_config(runner_config__epochs=3), path)
    return path, arrays(model)


# ------------------------------------------------------------------------------------------------ signals (B9
@pytest.mark.parametrize("number, raised", [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_b9_a_signal_ends_the_run_after_the_step_with_a_checkpoint(
    tmp_path, whole, number, raised, capsys, monkeypatch
):
    monkeypatch.setattr("sys.argv", ["run_blip2.py", "--config", "x.yaml"])
    config = run_config(runner_config__epochs=3)
    with pytest.raises(raised) as caught:
        fit(small_model(), Signalled(number), config, tmp_path)
    assert raised is KeyboardInterrupt or caught.value.code == 143
    last = folder_of(tmp_path) / "step_0000005"
    assert training_state.saved(folder_of(tmp_path))[-1] == last and not list(folder_of(tmp_path).glob(".*"))
    assert (
        f"{number.name}: stopped after step 5 of 9; the checkpoint is saved at: {last}.  Go on with: python "
        "run_blip2.py --config "
        "x.yaml --resume_training true"
    ) in capsys.readouterr().out
    assert (tmp_path / "log" / "loss_curve.png").is_file()  # the log was closed
    assert [
        json.loads(line)["step"] for line in (tmp_path / "log" / "train.jsonl").read_text().splitlines()
    ] == [2, 4]
    model = resumed(tmp_path, config, Batches())
    assert same(arrays(model), whole[1])
    # the mean loss between planned checkpoints is the same
    assert training_state.best(folder_of(tmp_path)) == training_state.best(folder_of(whole[0]))
    states = [training_state.read_state(folder_of(path) / "step_0000006") for path in (tmp_path, whole[0])]
    assert states[0] == states[1]


def test_b9_a_second_signal_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "SAME_SIGNAL", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fit(small_model(), Signalled(signal.SIGTERM, signal.SIGINT), run_config(), tmp_path)
    assert [one.name for one in training_state.saved(folder_of(tmp_path))] == ["step_0000003"] and not list(
        folder_of(tmp_path).glob(".*")
    )
    assert (tmp_path / "log" / "loss_curve.png").is_file()


def test_b9_a_signal_that_is_sent_twice_is_one(tmp_path):
    """``timeout`` sends SIGTERM to the process and to its group."""
    with pytest.raises(SystemExit):
        fit(small_model(), Signalled(signal.SIGTERM, signal.SIGTERM), run_config(), tmp_path)
    assert training_state.saved(folder_of(tmp_path))[-1].name == "step_0000005"


def test_b9_a_signal_that_was_ignored_stays_ignored(tmp_path, whole):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        model = small_model()
        fit(model, Signalled(signal.SIGTERM), run_config(runner_config__epochs=3), tmp_path)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN and same(arrays(model), whole[1])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_b9_in_another_thread_no_handlers_are_set():
    seen = []
    thread = threading.Thread(target=lambda: seen.append(signals.StopSignals().__enter__().before))
    thread.start(), thread.join()
    assert seen == [{}]


def test_b9_an_evaluation_that_a_signal_has_put_off_is_made_when_the_run_goes_on(tmp_path):
    def run(path, batches, resume=None):
        config, model = run_config(eval_step_interval=5), small_model()
        if resume:
            model.load_checkpoint(resume)
        return fit(model, batches, config, path, resume, held_out=held_out_losses(model, config))

    undisturbed = run(tmp_path / "whole", Batches())
    with pytest.raises(SystemExit):
        run(tmp_path / "stopped", Signalled(signal.SIGTERM))
    folder = folder_of(tmp_path / "stopped")
    assert training_state.read_state(folder / "step_0000005")["judged"] == {}
    again = run(tmp_path / "stopped", Batches(), folder / "step_0000005")
    figures = [
        [(entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry]
        for log in (undisturbed, again)
    ]
    assert figures[0] == figures[1] and 5 in dict(figures[0])
    assert training_state.best(folder) == training_state.best(folder_of(tmp_path / "whole"))


def on_a_mesh(monkeypatch, other):
    """This process is one of two, of which the other gives ``other`` to every sum."""
    monkeypatch.setattr(comm, "mesh", comm.Mesh(2, 1, 0))
    monkeypatch.setattr(comm, "host_all_reduce", lambda array: array + np.array(other, np.float32))


def test_b9_a_signal_to_another_process_of_the_mesh_counts(monkeypatch):
    stop = signals.StopSignals()
    assert stop.agreed() is None
    on_a_mesh(monkeypatch, [0, 1])
    assert stop.agreed() == signal.SIGTERM and stop.received is None
    on_a_mesh(monkeypatch, [0, 0])
    assert stop.agreed() is None
    stop.received = signal.SIGINT
    assert stop.agreed() == signal.SIGINT


def test_b10_all_processes_of_a_mesh_give_up_together(monkeypatch, tmp_path):
    with comm.fail_together():
        pass
    on_a_mesh(monkeypatch, [1])
    with pytest.raises(RuntimeError, match="another process of the mesh has failed"), comm.fail_together():
        pass
    made = []

    def tensors():
        for i in range(3):
            made.append(i)
            # the second cannot be written
            yield f"x{i}", "Float32", np.zeros(3, np.float64 if i == 1 else np.float32)

    on_a_mesh(monkeypatch, [0])
    with pytest.raises(TypeError, match="x1: type Float32 needs"):
        save_unsharded(tmp_path / "x.ckpt", tensors())
    # the others wait for the third in its collective
    assert made == [0, 1, 2] and not list(tmp_path.iterdir())


RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["run_blip2.py", "--config", "blip2_digits", "--mode", "1", "--run_mode", "train", "--trainer.type",
            "contrastive_language_image_pretrain", "--train_dataset.data_loader.scenes", "64", "--epochs", "500", "--batch_size", "4",
            "--runner_config.save_steps", "1000000", "--runner_config.log_every", "1", "--lr_schedule.warmup_steps", "2",
            "--train_dataset.num_parallel_workers", sys.argv[2], "--output_dir", sys.argv[1],
            "--model.model_config.vision_config.num_hidden_layers", "1", "--model.model_config.qformer_config.num_hidden_layers", "2"]
import runpy
runpy.run_path(ROOT + "/run_blip2.py", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_b9_the_command_line_ends_with_its_exit_code(tmp_path, number, code, workers):
    """With worker processes the whole process group gets the signal, as from a terminal or a batch system."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3"}
    process = subprocess.Popen(
        [sys.executable, "-c", f"ROOT = {str(ROOT)!r}\n{RUN}", str(tmp_path), workers],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log, end = tmp_path / "log" / "train.jsonl", time.time() + 200
    while not (log.is_file() and len(log.read_text().splitlines()) > 3):
        assert process.poll() is None and time.time() < end, process.stderr.read()
        time.sleep(0.1)
    os.killpg(process.pid, number)
    said, complaints = process.communicate(timeout=120)
    assert process.returncode == code, complaints[-3000:]
    last = training_state.saved(folder_of(tmp_path))[-1]
    assert f"{number.name}: stopped after step {int(last.name[5:])} of " in said
    assert f"Go on with: python {ROOT}/run_blip2.py --config" in said
    assert "Traceback" not in complaints and not list(folder_of(tmp_path).glob(".*"))


# ------------------------------------------------------------------------------------------------ one trainin
def test_b8_a_second_training_in_a_folder_is_refused_and_names_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["run_blip2.py", "--config", "a b.yaml"])
    with training_lock(tmp_path / "out"):
        with pytest.raises(
            ConfigError,
            match=rf"another training writes into .*out \(process {os.getpid()} on .*, since 20.*: "
            r"run_blip2.py --config 'a b.yaml'\).  Wait for its end, stop it, or choose another",
        ):
            with training_lock(tmp_path / "out"):
                raise AssertionError
        with training_lock(tmp_path / "other"):
            pass
    with training_lock(tmp_path / "out"):
        pass


HOLD = """
import sys, time
from mindblip2.trainer.output_lock import training_lock
with training_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_b8_a_dead_process_holds_no_lock(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3"},
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"process {process.pid} on "), training_lock(tmp_path):
        pass
    process.kill(), process.wait()
    with training_lock(tmp_path):
        pass


def test_b8_a_worker_that_outlives_its_parent_holds_no_lock(tmp_path):
    """A forked worker has the parent's open files."""
    context = multiprocessing.get_context("fork")
    with training_lock(tmp_path):
        worker = context.Process(target=time.sleep, args=(60,))
        worker.start()
    try:
        assert worker.is_alive()
        with training_lock(tmp_path):
            pass
    finally:
        worker.kill(), worker.join()


def test_b8_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def flock(*arguments):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(output_lock.fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING), training_lock(tmp_path):
        pass
    assert "has no locks (Function not implemented)" in caplog.text


def test_b8_a_trainer_holds_the_lock(tmp_path):
    from tests.trainer.test_pretrain import train

    with training_lock(tmp_path), pytest.raises(ConfigError, match="another training writes into"):
        train(tmp_path)
    assert not (tmp_path / "checkpoint").exists()
