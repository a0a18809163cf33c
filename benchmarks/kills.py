"""Commands that are killed with SIGKILL at random moments: is a file ever lost or half written, and is the
end the same?

    python benchmarks/kills.py [--kills 200] [--folder DIR] [--markdown benchmarks/kills.md]

A fifth of the kills each hits a training, a conversion (both ways), an evaluation and prediction,
``save_pretrained`` over a folder of another model, and ``run_mode split``.  A process is forked from this
one, which has imported everything but computed nothing, so that all of its life is work.

Training: a tiny model with dropout, drop path and evaluation saves after every step and keeps three
checkpoints.  A third of the kills come at a random moment after the start, a third at a random moment of the
training, a third as soon as a save is seen to be under way. After every kill all checkpoints are read whole
and compared with those of a run that nothing disturbed; the next process resumes.  The last one runs to the
end, and its weights must be those of the undisturbed run, bit for bit.  The losses in the log are compared to
1e-6: nothing is computed from them, and the last bit of a sum is not the same in every process.

The others: every process does the same work again and again, alternately with two inputs, into the same
files.  Half of the kills come at a random moment, half as soon as a temporary file is seen.  After every kill
each file must be, byte for byte, that of one of the two inputs, and all files of a folder those of the same
one.  At the end the work is done once more, and must leave the right files and no temporary ones.
"""

import argparse
import contextlib
import hashlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # no threads before a fork

import numpy as np  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
# also where the tests load this file by its path
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from bench import hardware  # noqa: E402

from mindblip2.checkpoint import training_state  # noqa: E402
from mindblip2.checkpoint.ckpt import Checkpoint  # noqa: E402
from mindblip2.file_io import write_text  # noqa: E402

STEPS_OF_AN_EPOCH, KEEP = 3, 3  # tests.trainer.small.Batches
MOMENTS = ("after the start", "in training", "in a save")
WRITERS = ("conversion", "evaluation", "save_pretrained", "split")
TRAINING = 0.2  # of all kills
_fork = threading.Lock()


# ------------------------------------------------------------------------------------------------ processes
class Ended(Exception):
    """The work was done before the process was killed."""


class Stopped(Exception):
    """Another command failed, so this process was killed before its end."""


class Process:
    """A fork of this process that executes ``work(*arguments)``; what it prints goes to ``log``.

    ``stop``: an event that another thread sets when it has failed; the fork is killed then, and
    :class:`Stopped` is raised in the thread that waits for it."""

    def __init__(self, work, *arguments, log, stop=None):
        with _fork:
            self.pid = os.fork()
        if self.pid == 0:
            with open(log, "ab", buffering=0) as file:
                os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
            code = 1
            try:
                work(*arguments)
                code = 0
            except BaseException as error:  # noqa: BLE001  this process ends here
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
            finally:
                os._exit(code)
        self.code, self.log, self.stop = None, log, stop

    def poll(self):
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self, seconds=1800):
        """Let it come to its end, which must be a good one."""
        self.wait_for(lambda: self.poll() is not None, seconds, ends=True)
        if self.code:
            raise SystemExit(f"a process that was not killed ended with {self.code}: see {self.log}")

    def wait_for(self, happened, seconds=900, ends=False):
        end = time.time() + seconds
        while not happened():
            if self.stop is not None and self.stop.is_set():
                if self.poll() is None:
                    self.kill()
                raise Stopped
            if not ends:
                self.check()
            if time.time() > end:
                raise SystemExit(f"the process does not get on: see {self.log}")
            time.sleep(0.0005)

    def kill(self):
        self.check()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def check(self):
        """Raises Ended where it is at its end, SystemExit where that was an error."""
        if self.poll() is not None:
            raise (
                Ended
                if self.code == 0
                else SystemExit(f"the process ended by itself with {self.code}: see {self.log}")
            )


# ------------------------------------------------------------------------------------------------ training
def train(folder, epochs, keep):
    """Begin the run in ``folder``, or go on with it, to its end."""
    import mindspore as ms

    from mindblip2.trainer.loop import fit
    from tests.trainer.small import Batches, held_out_losses, run_config, small_model

    ms.set_context(mode=ms.PYNATIVE_MODE)
    config = run_config(
        runner_config__epochs=epochs,
        runner_config__save_steps=1,
        runner_config__log_every=1,
        runner_config__keep_checkpoint_max=keep,
    )
    model, newest = small_model(), None
    if training_state.saved(folder / "checkpoint" / "rank_0"):
        newest = training_state.find(True, folder / "checkpoint" / "rank_0")
        model.load_checkpoint(newest)
    (folder / "begun").touch()
    fit(model, Batches(), config, folder, newest, None, held_out_losses(model, config))
    model.save_checkpoint(folder / "end.ckpt")


class Run:
    """A folder with a training run in it."""

    def __init__(self, folder, epochs, keep=KEEP, stop=None):
        self.folder, self.epochs, self.keep, self.stop = folder, epochs, keep, stop
        self.checkpoints = folder / "checkpoint" / "rank_0"
        folder.mkdir(parents=True)

    def start(self):
        (self.folder / "begun").unlink(missing_ok=True)
        log = self.folder / "errors.txt"
        return Process(train, self.folder, self.epochs, self.keep, log=log, stop=self.stop)

    def finish(self):
        """(seconds until it began to train, the weights' file) of a process that is let run to the end."""
        started, process = time.time(), self.start()
        process.wait_for((self.folder / "begun").exists)
        begun = time.time() - started
        process.wait(7200)
        return begun, (self.folder / "end.ckpt").read_bytes()

    def newest(self):
        return max((int(one.name[5:]) for one in training_state.saved(self.checkpoints)), default=0)

    def half_written(self):
        """Names of what a save or a deletion that is under way, or was killed, has made."""
        return sorted(one.name for one in self.checkpoints.glob(".*"))

    def kill(self, moment, rng, start_seconds):
        """Start the run and kill it at ``moment``; returns what is left half written."""
        process, before = self.start(), self.newest()
        if moment == "after the start":
            time.sleep(rng.uniform(0, 1.5 * start_seconds))
        else:
            # so that the run gets on between two kills
            process.wait_for(lambda: self.newest() > before + 1)
            if moment == "in training":
                time.sleep(rng.uniform(0, 0.5))
            else:
                process.wait_for(self.half_written)
                time.sleep(rng.uniform(0, 0.01))
        process.kill()
        return self.half_written()


def wrong_with(run, before, truth):
    """What is wrong after a kill: a list of complaints.  ``before``: the newest checkpoint before; ``truth``:
    {step: arrays}."""
    wrong = [] if run.newest() >= before else [f"step {before} was lost, the newest is {run.newest()}"]
    for one in training_state.saved(run.checkpoints):
        step = int(one.name[5:])
        try:
            state = training_state.read_state(one)
            same = state["step"] == step and contents(one) == truth.get(step)
        except (OSError, ValueError) as error:
            wrong.append(f"{one.name} cannot be read: {error}")
            continue
        if not same:
            wrong.append(f"{one.name} is not that of the undisturbed run")
    noted = training_state.best(run.checkpoints).get("checkpoint")
    if noted and not (run.checkpoints / noted / "state.json").is_file():
        wrong.append(f"the best checkpoint, {noted}, is gone")
    if (run.checkpoints / training_state.BEST).is_file() and not noted:
        wrong.append("the note of the best checkpoint is damaged")
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
    lines = [
        json.loads(line)
        for line in (run.folder / "log" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return [{name: value for name, value in entry.items() if "second" not in name} for entry in lines]


def same_log(one, other):
    """Whether two logs have the same entries, numbers to 1e-6."""
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(abs(a[name] - b[name]) <= 1e-6 * max(1.0, abs(b[name])) for name in a)
        for a, b in zip(one, other)
    )


def kill_training(folder, kills, seed, tell, stop=None):
    """([(moment, step, half-written names left, complaints)], {what of the end: whether it is the undisturbed
    run's}, steps).  Raises :class:`Stopped` when the event ``stop`` is set."""
    epochs, rng, rows = 2 + kills * 3 // 2, np.random.default_rng(seed), []
    steps = STEPS_OF_AN_EPOCH * epochs
    whole = Run(folder / "whole", epochs, keep=steps, stop=stop)
    killed = Run(folder / "killed", epochs, stop=stop)
    start_seconds, end = whole.finish()
    truth = {int(one.name[5:]): contents(one) for one in training_state.saved(whole.checkpoints)}
    for number in range(kills):
        if stop is not None and stop.is_set():
            raise Stopped
        moment, before = MOMENTS[number % 3], killed.newest()
        try:
            left = killed.kill(moment, rng, start_seconds)
        except Ended:  # on a fast machine; the report says how many kills it were
            break
        rows.append((moment, killed.newest(), left, wrong_with(killed, before, truth)))
        tell("training", *rows[-1])
    return (
        rows,
        {
            "weights": killed.finish()[1] == end,
            "log": same_log(logged(killed), logged(whole)),
            "best checkpoint": training_state.best(killed.checkpoints)
            == training_state.best(whole.checkpoints),
        },
        steps,
    )


# ------------------------------------------------------------------------------------------------ writers
def converter(inputs, out):
    """Weights of LAVIS to a .ckpt, and back to a torch file."""
    import torch

    from mindblip2.convert.to_mindspore import to_mindspore
    from mindblip2.convert.to_torch import to_torch
    from mindblip2.parity.weights import TINY, Seeded

    for number in (0, 1):
        torch.save(dict(Seeded(TINY, number)), inputs / f"{number}.pth")

    def work(number):
        to_mindspore(inputs / f"{number}.pth", out / "model.ckpt", config=TINY)
        to_torch(out / "model.ckpt", out / "back.pth")

    return work


def evaluator(inputs, out):
    """Retrieval among a few of the demo's pictures: its figures and its page; and a prediction with its text
    and picture."""
    from mindblip2 import Trainer, load_config
    from mindblip2.demo import digits

    samples = [
        [
            {"image": digits.render(scene), "captions": [digits.caption(scene)], "image_id": i}
            for i, scene in enumerate(scenes)
        ]
        for scenes in (digits.held_out("digits")[:4], digits.held_out("digits")[-4:])
    ]
    config = load_config("blip2_digits", {"context.mode": 1, "output_dir": str(out)})
    search, guess = (
        Trainer(args=config, task="image_to_text_retrieval"),
        Trainer(args=config, task="zero_shot_image_classification"),
    )

    def work(number):
        search.eval_dataset = samples[number]
        search.evaluate(k_test=2)
        guess.predict(
            [samples[number][0]["image"]],
            candidate_labels=["one", "seven"],
            save_file=out / "result.txt",
            save_picture=out / "result.png",
        )

    return work


def saver(inputs, out):
    """Two models with different weights, configurations and processors into one folder."""
    from mindblip2 import Blip2Processor, Blip2Qformer

    models = [Blip2Qformer.from_pretrained("blip2_digits") for _ in (0, 1)]
    models[1].config = models[1].config.replace(label_smoothing=0.2)
    models[1].temp.set_data(models[1].temp * 2)
    processors = [Blip2Processor.from_pretrained("blip2_digits") for _ in (0, 1)]
    processors[1].max_length = 9

    def work(number):
        models[number].save_pretrained(out / "model", processors[number])

    return work


def splitter(inputs, out):
    """A model to two files."""
    import contextlib

    from mindblip2 import Blip2Qformer, load_config, split_checkpoint

    model = Blip2Qformer.from_pretrained("blip2_digits")
    for number in (0, 1):
        model.temp.set_data(model.temp * (number + 1))
        model.save_checkpoint(inputs / f"{number}.ckpt")

    def work(number):
        from mindblip2.checkpoint.split_merge import UNFINISHED

        if not (out / UNFINISHED).exists():
            for piece in out.glob("piece_*"):  # a finished split is not written over
                with contextlib.suppress(FileNotFoundError):
                    piece.unlink()
        split_checkpoint(
            load_config(
                "blip2_digits",
                {
                    "load_checkpoint": str(inputs / f"{number}.ckpt"),
                    "output_dir": str(out),
                    "parallel_config.model_parallel": 2,
                },
            )
        )

    return work


MAKE = {"conversion": converter, "evaluation": evaluator, "save_pretrained": saver, "split": splitter}
TOGETHER = {"save_pretrained": ("model",)}  # folders whose files belong together
CLOCK = ("seconds", "pairs_per_second")


def work_again_and_again(name, folder, times=None):
    """The work of a writer into ``folder/out``, with both inputs in turn; ``times``: how often, None without
    end."""
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
    for part in ("inputs", "out"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    work = MAKE[name](folder / "inputs", folder / "out")
    (folder / "begun").touch()
    number = 0
    while times is None or number < times:
        work(number % 2)
        number += 1


def files_of(folder):
    """{name: digest} of the files below a folder; those that only the clock tells apart are alike."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            found[str(path.relative_to(folder))] = digest_of(path)
    return found


def digest_of(path):
    data = path.read_bytes()
    if path.suffix == ".json":
        with contextlib.suppress(ValueError):
            data = json.dumps(_timeless(json.loads(data)), sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()


def _timeless(value):
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in CLOCK}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def temporary(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))


def damaged(found, truths, together=()):
    """Complaints about {name: digest}: a file that is in none of the ``truths``, or files of a folder of
    ``together`` that are of different ones."""
    wrong = [
        f"{name} is half written or different"
        for name, digest in found.items()
        if all(truth.get(name) != digest for truth in truths)
    ]
    for folder in together:
        inside = {name: digest for name, digest in found.items() if name.startswith(folder + "/")}
        if inside and not any(
            inside == {name: one for name, one in truth.items() if name.startswith(folder + "/")}
            for truth in truths
        ):
            wrong.append(f"{folder} holds files of different models, or not all")
    return wrong


def kill_writer(name, folder, kills, seed, tell):
    """[(moment, how many files are there, temporary names left, complaints)] of each kill."""
    rng, rows, truths, log = np.random.default_rng(seed), [], [], folder / "errors.txt"
    folder.mkdir(parents=True)
    for number in (1, 2):  # what each input gives, undisturbed
        Process(work_again_and_again, name, folder / f"truth_{number}", number, log=log).wait()
        # in the end those of both works
        seconds = time.time() - (folder / f"truth_{number}" / "begun").stat().st_mtime
        truths.append(files_of(folder / f"truth_{number}" / "out"))
    killed = folder / "killed"
    out = killed / "out"
    for number in range(kills):
        moment = ("at random", "in a write")[number % 2]
        (killed / "begun").unlink(missing_ok=True)
        process = Process(work_again_and_again, name, killed, log=log)
        process.wait_for((killed / "begun").exists)
        time.sleep(rng.uniform(0, 1.2 * seconds))
        if moment == "in a write":
            before = set(temporary(out))  # of the kill before
            process.wait_for(lambda seen=before: set(temporary(out)) - seen, 120)
            time.sleep(rng.uniform(0, 0.01))
        process.kill()
        found = files_of(out)
        rows.append((moment, len(found), temporary(out), damaged(found, truths, TOGETHER.get(name, ()))))
        tell(name, *rows[-1])
    # nothing that is left stands in its way
    Process(work_again_and_again, name, killed, 1, log=log).wait()
    complaints = [] if files_of(out) == truths[0] else ["the work that is done again gives other files"]
    complaints += [f"temporary files stay: {', '.join(temporary(out))}"] if temporary(out) else []
    if complaints:
        rows.append(("at the end", len(files_of(out)), temporary(out), complaints))
    return rows


# ------------------------------------------------------------------------------------------------ the report
def report(kills, ends, steps, seconds, writers=()):
    """The result in words and numbers.  ``kills``: (moment, step, half-written names left, complaints) of
    each; ``ends``: {what: whether it is that of the undisturbed run}; ``writers``: {name: rows of
    ``kill_writer``}."""
    lines = ["| killed | times | of these with half-written files left | at steps |", "|---|---|---|---|"]
    for moment in MOMENTS:
        rows = [row for row in kills if row[0] == moment]
        half_written = sum(bool(row[2]) for row in rows)
        steps_of_kills = ", ".join(str(row[1]) for row in rows)
        lines.append(f"| {moment} | {len(rows)} | {half_written} | {steps_of_kills} |")
    complaints = [f"kill {number}: {one}" for number, row in enumerate(kills, 1) for one in row[3]]
    lines += [
        "",
        f"Checkpoints lost, half written or different: {len(complaints)}.",
        *complaints,
        "The resumed run's end equals the undisturbed one's: "
        + ", ".join(f"{what} {'yes' if same else 'NO'}" for what, same in ends.items())
        + f".  {steps} steps.",
    ]
    if writers:
        lines += [
            "",
            "| command | killed | of these with temporary files left | files read afterwards | "
            "half written, different or mixed |",
            "|---|---|---|---|---|",
        ]
        for name, rows in writers.items():
            wrong = [one for row in rows for one in row[3]]
            killed = sum(row[0] != "at the end" for row in rows)
            temporary_left = sum(bool(row[2]) for row in rows)
            files_read = sum(row[1] for row in rows)
            lines.append(f"| {name} | {killed} | {temporary_left} | {files_read} | {len(wrong)} |")
        lines += [
            "",
            *(
                f"{name}, kill {number}: {one}"
                for name, rows in writers.items()
                for number, row in enumerate(rows, 1)
                for one in row[3]
            ),
        ]
    count = len(kills) + sum(row[0] != "at the end" for rows in dict(writers).values() for row in rows)
    return "\n".join([*lines, f"{count} kills, {seconds:.0f} s in all."])


def run_with_training(training, commands):
    """(result of ``training(stop)``, result of ``commands()``): the first in a thread, the second here.

    ``stop``: an event that is set when ``commands`` raises; the thread is waited for, and the error is raised
    again, so that no training goes on after a failure.  An error of the training is raised at the end."""
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:  # whose exit waits for the thread
        future = pool.submit(training, stop)
        try:
            result = commands()
        except BaseException:
            stop.set()
            raise
        return future.result(), result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    parser.add_argument("--markdown", help="write the report here too")
    options = parser.parse_args()
    command = " ".join(sys.argv)
    head = f"# Commands that are killed, {date.today()}\n\n{hardware()}\n\nCommand: `python {command}`\n\n"
    import mindblip2.convert.to_mindspore  # noqa: F401  for the forks
    import mindblip2.parity.weights  # noqa: F401
    import mindblip2.trainer.tasks  # noqa: F401

    started = time.time()

    def tell(*row):
        print(f"{time.time() - started:5.0f} s", *row, flush=True)

    with tempfile.TemporaryDirectory() as temporary_folder:
        folder = (options.folder or Path(temporary_folder)).absolute()
        training = max(round(TRAINING * options.kills), 1)
        others = [len(range(place, options.kills - training, len(WRITERS))) for place in range(len(WRITERS))]

        def kill_writers():
            return {
                name: kill_writer(name, folder / name, kills, options.seed + 1 + place, tell)
                for place, (name, kills) in enumerate(zip(WRITERS, others))
                if kills
            }

        (rows, ends, steps), found = run_with_training(
            lambda stop: kill_training(folder / "training", training, options.seed, tell, stop), kill_writers
        )
    text = head + report(rows, ends, steps, time.time() - started, found) + "\n"
    print(text)
    if options.markdown:
        write_text(options.markdown, text)
    sys.exit(not all(ends.values()) or any(row[3] for one in (rows, *found.values()) for row in one))


if __name__ == "__main__":
    main()
