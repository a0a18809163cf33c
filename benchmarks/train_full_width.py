"""Stage 1 at full size, trained from COCO-format files, killed in the middle and resumed.

    python benchmarks/train_full_width.py --folder /tmp/train [--checkpoint blip2_stage1.ckpt] [--steps 20]
        [--batch 4] [--whole] [--small]

The pictures are crops of scikit-learn's two photographs with captions that say which.  Without
``--checkpoint`` the weights are random; their file of 4.7 GB is made first.  The run is killed with SIGKILL
as soon as its checkpoint of the middle is there, goes on from it, and a table is printed: losses, seconds per
step, peak memory.  ``--whole`` runs it once more without a kill, in the same time again, and compares the
losses.  ``--small`` tries the script with a small model.  The folder needs 15 GB; it is emptied first.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
# also where the tests load this file by its path
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from bench import hardware  # noqa: E402

WORDS = {
    "china": ("a temple with a curved roof", "trees in front of a temple", "a grey sky above roofs"),
    "flower": ("a large red flower", "petals with water drops", "a green leaf behind a flower"),
}
VISION, QFORMER = "model.model_config.vision_config", "model.model_config.qformer_config"
SMALL = {
    f"{VISION}.hidden_size": 64,
    f"{VISION}.num_hidden_layers": 2,
    f"{VISION}.num_attention_heads": 4,
    f"{VISION}.intermediate_size": 128,
    f"{QFORMER}.encoder_width": 64,
    f"{QFORMER}.hidden_size": 64,
    f"{QFORMER}.num_hidden_layers": 2,
    f"{QFORMER}.num_attention_heads": 4,
    f"{QFORMER}.intermediate_size": 128,
}
MAKE = """
import sys
from mindblip2 import Blip2Qformer, load_config
config = load_config("blip2_stage1_vit_g", eval(sys.argv[2]))
Blip2Qformer(config.model.model_config).save_checkpoint(sys.argv[1])
"""


def draw(folder, count, size=None):
    """``count`` crops as JPEG files, of ``size`` (width, height) if given, and their annotations in the form
    of COCO's Karpathy split."""
    from sklearn.datasets import load_sample_image

    rng, rows = np.random.default_rng(0), []
    (folder / "images").mkdir(parents=True)
    for i in range(count):
        name = sorted(WORDS)[i % 2]
        picture = Image.fromarray(load_sample_image(f"{name}.jpg"))
        side = int(rng.integers(200, 400))
        left, top = (int(rng.integers(0, n - side)) for n in picture.size)
        crop = picture.crop((left, top, left + side, top + side))
        (crop.resize(size) if size else crop).save(folder / "images" / f"{i:05d}.jpg", quality=92)
        rows.append({"image": f"{i:05d}.jpg", "caption": WORDS[name][i // 2 % 3], "image_id": f"coco_{i}"})
    (folder / "train.json").write_text(json.dumps(rows), encoding="utf-8")


class Training:
    """Runs of one configuration from one checkpoint, each in a folder of its own, in processes of their
    own."""

    def __init__(self, checkpoint, folder, options):
        self.checkpoint, self.folder, self.options, self.peak = checkpoint, folder, options, 0.0
        self.sizes = SMALL if options.small else {}

    def command(self, out):
        steps = self.options.steps
        loader = "train_dataset.data_loader"
        keys = {
            **self.sizes,
            f"{loader}.annotation_files": "[train.json]",
            f"{loader}.image_dirs": "[images]",
            "lr_schedule.total_steps": steps,
            "runner_config.save_steps": steps // 2,
            "runner_config.log_every": 1,
        }
        flags = {
            "config": "blip2_stage1_vit_g",
            "run_mode": "train",
            "load_checkpoint": self.checkpoint,
            "epochs": 2,
            "train_dataset_dir": self.folder / "data",
            "batch_size": self.options.batch,
            "output_dir": self.folder / out,
            **keys,
        }
        return [
            sys.executable,
            "run_blip2.py",
            *(str(part) for key, value in flags.items() for part in (f"--{key}", value)),
        ]

    def run(self, out, *more, until=lambda: False):
        """Start, or go on with, the run in folder ``out``; it is killed when ``until`` is true.  Returns the
        exit code."""
        with open(self.folder / "log.txt", "a", encoding="utf-8") as log:
            process = subprocess.Popen([*self.command(out), *more], cwd=ROOT, stderr=log)
        while process.poll() is None:
            self.peak = max(self.peak, peak(process))
            if until():
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.2)
        return process.wait()

    def log(self, out):
        return [
            json.loads(line)
            for line in (self.folder / out / "log" / "train.jsonl").read_text(encoding="utf-8").splitlines()
        ]


def peak(process):
    """The process's peak memory so far in GB, files that it maps included, or 0 when it has gone."""
    try:
        rows = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(row.split()[1]) / 1e6 for row in rows if row.startswith("VmHWM")), 0.0)


def report(log, options, memory, sizes, same=None):
    """The figures as Markdown.  ``same``: whether the losses are those of a run that was not killed."""
    seconds = statistics.median(entry["seconds"] for entry in log[2:])
    lines = [
        f"Killed after step {options.steps // 2}, resumed, {len(log)} of {options.steps} steps logged.  "
        f"Median {seconds:.1f} s per step of {options.batch} pairs ({options.batch / seconds:.2f} pairs/s), "
        f"peak memory {memory:.2f} GB.  A checkpoint: "
        + ", ".join(f"{name} {size:.2f} GB" for name, size in sorted(sizes.items()))
        + "."
    ]
    if same is not None:
        lines.append(
            f"Every figure of every step is that of the run that was not killed: {'yes' if same else 'NO'}."
        )
    lines += ["", "| step | itc | itm | lm | seconds |", "|---|---|---|---|---|"]
    lines += [
        f"| {e['step']} | {e['itc']:.3f} | {e['itm']:.3f} | {e['lm']:.3f} | {e['seconds']:.1f} |" for e in log
    ]
    return "\n".join(lines)


def untimed(log):
    return [{name: value for name, value in entry.items() if "second" not in name} for entry in log]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, required=True, help="for data, weights and checkpoints; emptied first"
    )
    parser.add_argument("--checkpoint", type=Path, help="the .ckpt to start from; default: random weights")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--whole", action="store_true", help="compare with a run that is not killed")
    parser.add_argument(
        "--small", action="store_true", help="a small model: tries the script, measures nothing"
    )
    options = parser.parse_args()
    machine, folder = hardware(), options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    draw(folder / "data", options.steps * options.batch)
    checkpoint = options.checkpoint.resolve() if options.checkpoint else folder / "start.ckpt"
    training = Training(checkpoint, folder, options)
    if not options.checkpoint:
        subprocess.run(
            [sys.executable, "-c", MAKE, checkpoint, repr(training.sizes)],
            cwd=ROOT,
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    middle = folder / "killed" / "checkpoint" / "rank_0" / f"step_{options.steps // 2:07d}"
    codes = [
        training.run("killed", until=(middle / "state.json").is_file),
        training.run("killed", "--resume_training", "true"),
    ]
    codes += [training.run("whole")] if options.whole else []
    if codes[0] != -signal.SIGKILL or any(codes[1:]):
        sys.exit(f"the runs ended with {codes}: see {folder / 'log.txt'}")
    log = training.log("killed")
    same = untimed(log) == untimed(training.log("whole")) if options.whole else None
    print(f"{machine}\n\nCommand: `python {' '.join(sys.argv)}`\n")
    print(
        report(
            log,
            options,
            training.peak,
            {path.name: path.stat().st_size / 1e9 for path in middle.iterdir()},
            same,
        )
    )
    sys.exit(same is False or [entry["step"] for entry in log] != list(range(1, options.steps + 1)))


if __name__ == "__main__":
    main()
