"""A run that is killed with SIGKILL at random moments: is a checkpoint ever lost or half written, and is the end the same?

    python benchmarks/kills.py [--kills 30] [--folder DIR] [--markdown benchmarks/kills.md]

A tiny model with dropout, drop path and evaluation during training saves after every step and keeps three checkpoints.  A third of
the kills come at a random moment after the start of the process (imports, resuming, the first steps), a third at a random moment of
the training, a third as soon as a save is seen to be under way.  After every kill all checkpoints are read whole and compared with
those of a run that nothing disturbed; the next process resumes.  The last one runs to the end, and its weights must be those of the
undisturbed run, bit for bit.  The losses in the log are compared to 1e-6: nothing is computed from them, and the last bit of a sum is
not the same in every process.
"""
import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]    # also where the tests load this file by its path

from bench import hardware  # noqa: E402

from mindblip2.checkpoint import Checkpoint  # noqa: E402
from mindblip2.trainer import saving  # noqa: E402

RUN = """
import sys
from mindblip2.trainer import saving
from mindblip2.trainer.loop import fit
from tests.trainer.small import Batches, held_out_losses, run_config, small_model
path, epochs, keep = sys.argv[1], *map(int, sys.argv[2:])
config = run_config(runner_config__epochs=epochs, runner_config__save_steps=1, runner_config__log_every=1,
                    runner_config__keep_checkpoint_max=keep)
model, newest = small_model(), None
if saving.saved(path + "/checkpoint/rank_0"):
    newest = saving.find(True, path + "/checkpoint/rank_0")
    model.load_checkpoint(newest)
print("begins", flush=True)
fit(model, Batches(), config, path, newest, None, held_out_losses(model, config))
model.save_checkpoint(path + "/end.ckpt")
"""
STEPS_OF_AN_EPOCH, KEEP = 3, 3      # tests.trainer.small.Batches
MOMENTS = ("after the start", "in training", "in a save")


class Run:
    """A folder with a training run in it."""

    def __init__(self, folder, epochs, keep=KEEP):
        self.folder, self.epochs, self.keep = folder, epochs, keep
        self.checkpoints = folder / "checkpoint" / "rank_0"
        folder.mkdir(parents=True)

    def start(self):
        command = [sys.executable, "-c", RUN, str(self.folder), str(self.epochs), str(self.keep)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3"}
        with open(self.folder / "errors.txt", "a", encoding="utf-8") as errors:
            return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=self.folder)

    def finish(self):
        """(seconds until it began to train, the weights' file) of a process that is let run to the end."""
        started, process = time.time(), self.start()
        process.stdout.readline()
        begun = time.time() - started
        process.communicate()
        if process.returncode:
            raise SystemExit(f"a run that was not killed ended with {process.returncode}: see {self.folder / 'errors.txt'}")
        return begun, (self.folder / "end.ckpt").read_bytes()

    def newest(self):
        return max((int(one.name[5:]) for one in saving.saved(self.checkpoints)), default=0)

    def half_written(self):
        """Names of what a save or a deletion that is under way, or was killed, has made."""
        return sorted(one.name for one in self.checkpoints.glob(saving.PARTIAL + "*"))

    def kill(self, moment, rng, start_seconds):
        """Start the run and kill it at ``moment``; returns what is left half written."""
        process, before = self.start(), self.newest()
        if moment == "after the start":
            time.sleep(rng.uniform(0, 1.5 * start_seconds))
        else:
            process.stdout.readline()
            wait_for(process, lambda: self.newest() > before + 1)     # so that the run gets on between two kills
            if moment == "in training":
                time.sleep(rng.uniform(0, 0.5))
            else:
                wait_for(process, self.half_written)
                time.sleep(rng.uniform(0, 0.01))
        if process.poll() is not None:
            raise SystemExit(f"the run had ended before it was killed: see {self.folder / 'errors.txt'}")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return self.half_written()


def wait_for(process, happened, seconds=600):
    end = time.time() + seconds
    while not happened():
        if process.poll() is not None or time.time() > end:
            raise SystemExit("the run ended by itself, or does not get on")
        time.sleep(0.0005)


def wrong_with(run, before, truth):
    """What is wrong after a kill: a list of complaints.  ``before``: the newest checkpoint before; ``truth``: {step: arrays}."""
    wrong = [] if run.newest() >= before else [f"step {before} was lost, the newest is {run.newest()}"]
    for one in saving.saved(run.checkpoints):
        step = int(one.name[5:])
        try:
            state = saving.read_state(one)
            same = state["step"] == step and contents(one) == truth.get(step)
        except (OSError, ValueError) as error:
            wrong.append(f"{one.name} cannot be read: {error}")
            continue
        if not same:
            wrong.append(f"{one.name} is not that of the undisturbed run")
    noted = saving.best(run.checkpoints).get("checkpoint")
    if noted and not (run.checkpoints / noted / "state.json").is_file():
        wrong.append(f"the best checkpoint, {noted}, is gone")
    return wrong


def contents(path):
    """A digest of all arrays of a checkpoint, which reads every byte of it."""
    digest = hashlib.sha256()
    for name in ("model.ckpt", "optimizer.ckpt"):
        stored = Checkpoint(path / name)
        for array in sorted(stored):
            digest.update(f"{name} {array} {stored.shapes[array]}".encode() + stored[array].tobytes())
    return digest.hexdigest()


def logged(run):
    """The log without what the clock decides."""
    lines = [json.loads(line) for line in (run.folder / "log" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in entry.items() if "second" not in name} for entry in lines]


def same_log(one, other):
    """Whether two logs have the same entries, numbers to 1e-6."""
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(abs(a[name] - b[name]) <= 1e-6 * max(1.0, abs(b[name])) for name in a) for a, b in zip(one, other))


def report(kills, ends, steps, seconds):
    """The result in words and numbers.  ``kills``: (moment, step, half-written names left, complaints) of each; ``ends``: {what:
    whether it is that of the undisturbed run}."""
    lines = ["| killed | times | of these with half-written files left | at steps |", "|---|---|---|---|"]
    for moment in MOMENTS:
        rows = [row for row in kills if row[0] == moment]
        lines.append(f"| {moment} | {len(rows)} | {sum(bool(row[2]) for row in rows)} | {', '.join(str(row[1]) for row in rows)} |")
    complaints = [f"kill {number}: {one}" for number, row in enumerate(kills, 1) for one in row[3]]
    lines += ["", f"Checkpoints lost, half written or different: {len(complaints)}.", *complaints,
              "The resumed run's end equals the undisturbed one's: "
              + ", ".join(f"{what} {'yes' if same else 'NO'}" for what, same in ends.items())
              + f".  {steps} steps, {len(kills)} kills, {seconds:.0f} s in all."]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    parser.add_argument("--markdown", help="write the report here too")
    options = parser.parse_args()
    head = f"# Runs that are killed, {date.today()}\n\n{hardware()}\n\nCommand: `python {' '.join(sys.argv)}`\n\n"
    started, rng, kills = time.time(), np.random.default_rng(options.seed), []
    with tempfile.TemporaryDirectory() as temporary:
        folder, epochs = (options.folder or Path(temporary)).absolute(), 6 * options.kills
        steps = STEPS_OF_AN_EPOCH * epochs
        whole, killed = Run(folder / "whole", epochs, keep=steps), Run(folder / "killed", epochs)
        start_seconds, end = whole.finish()
        truth = {int(one.name[5:]): contents(one) for one in saving.saved(whole.checkpoints)}
        for number in range(options.kills):
            moment, before = MOMENTS[number % 3], killed.newest()
            left = killed.kill(moment, rng, start_seconds)
            kills.append((moment, killed.newest(), left, wrong_with(killed, before, truth)))
            print(f"kill {number + 1}:", *kills[-1], flush=True)
        ends = {"weights": killed.finish()[1] == end, "log": same_log(logged(killed), logged(whole)),
                "best checkpoint": saving.best(killed.checkpoints) == saving.best(whole.checkpoints)}
    text = head + report(kills, ends, steps, time.time() - started) + "\n"
    print(text)
    if options.markdown:
        Path(options.markdown).write_text(text, encoding="utf-8")
    sys.exit(not all(ends.values()) or any(row[3] for row in kills))


if __name__ == "__main__":
    main()
