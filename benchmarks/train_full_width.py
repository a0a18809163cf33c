"""Stage 1 at full size, trained from COCO-format files, killed in the middle and resumed.

    python benchmarks/train_full_width.py blip2_stage1.ckpt --folder /tmp/train [--steps 20] [--batch 4]

The pictures are crops of scikit-learn's two photographs with captions that say which; the weights may be random.  The run is killed with
SIGKILL as soon as its checkpoint of the middle is there, goes on from it, and prints a table: losses, seconds per step, peak memory.
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
from bench import hardware
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
WORDS = {"china": ("a temple with a curved roof", "trees in front of a temple", "a grey sky above roofs"),
         "flower": ("a large red flower", "petals with water drops", "a green leaf behind a flower")}


def draw(folder, count):
    """``count`` crops as JPEG files and their annotations in the form of COCO's Karpathy split."""
    from sklearn.datasets import load_sample_image
    rng, rows = np.random.default_rng(0), []
    (folder / "images").mkdir(parents=True)
    for i in range(count):
        name = sorted(WORDS)[i % 2]
        picture = Image.fromarray(load_sample_image(f"{name}.jpg"))
        side = int(rng.integers(200, 400))
        left, top = (int(rng.integers(0, n - side)) for n in picture.size)
        picture.crop((left, top, left + side, top + side)).save(folder / "images" / f"{i:05d}.jpg", quality=92)
        rows.append({"image": f"{i:05d}.jpg", "caption": WORDS[name][i // 2 % 3], "image_id": f"coco_{i}"})
    (folder / "train.json").write_text(json.dumps(rows), encoding="utf-8")


def start(checkpoint, folder, options, *more):
    command = [sys.executable, "run_blip2.py", "--config", "blip2_stage1_vit_g", "--run_mode", "train", "--load_checkpoint", checkpoint,
               "--train_dataset_dir", folder / "data", "--train_dataset.data_loader.annotation_files", "[train.json]",
               "--train_dataset.data_loader.image_dirs", "[images]", "--batch_size", options.batch, "--epochs", 2,
               "--lr_schedule.total_steps", options.steps, "--runner_config.save_steps", options.steps // 2,
               "--runner_config.log_every", 1, "--output_dir", folder / "out", *more]
    return subprocess.Popen([str(part) for part in command], cwd=ROOT, stderr=open(folder / "log.txt", "a", encoding="utf-8"))


def peak(process):
    """The process's peak memory so far in GB, or 0 when it has gone."""
    try:
        rows = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(row.split()[1]) / 1e6 for row in rows if row.startswith("VmHWM")), 0.0)


def watch(process, until=lambda: False):
    """Wait for the end of the process, or ``until``; returns its peak memory."""
    most = 0.0
    while process.poll() is None and not until():
        most = max(most, peak(process))
        time.sleep(0.2)
    return most


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--folder", type=Path, required=True, help="for data and checkpoints; emptied first")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    folder = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    draw(folder / "data", options.steps * options.batch)
    saved = folder / "out" / "checkpoint" / "rank_0" / f"step_{options.steps // 2:07d}" / "state.json"
    first = start(options.checkpoint, folder, options)
    most = watch(first, saved.is_file)
    first.send_signal(signal.SIGKILL)
    killed = first.wait()
    second = start(options.checkpoint, folder, options, "--resume_training", "true")
    most = max(most, watch(second))
    if killed != -signal.SIGKILL or second.returncode:
        sys.exit(f"the runs ended with {killed} and {second.returncode}: see {folder / 'log.txt'}")
    log = [json.loads(line) for line in (folder / "out" / "log" / "train.jsonl").read_text().splitlines()]
    seconds = statistics.median(entry["seconds"] for entry in log[2:])
    sizes = {path.name: path.stat().st_size / 1e9 for path in saved.parent.iterdir()}
    print(f"{hardware()}\n\nCommand: `{' '.join(['python', *map(os.path.basename, sys.argv[:1]), *sys.argv[2:]])}`\n")
    print(f"Killed after step {options.steps // 2}, resumed, {len(log)} of {options.steps} steps logged.  Median {seconds:.1f} s per step "
          f"of {options.batch} pairs, peak memory {most:.2f} GB.  A checkpoint: "
          + ", ".join(f"{name} {size:.2f} GB" for name, size in sorted(sizes.items())) + ".\n")
    print("| step | itc | itm | lm | seconds |\n|---|---|---|---|---|")
    for entry in log:
        print(f"| {entry['step']} | {entry['itc']:.3f} | {entry['itm']:.3f} | {entry['lm']:.3f} | {entry['seconds']:.1f} |")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
