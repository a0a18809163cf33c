"""Training data alone: samples per second that the feed makes, with nobody waiting for them.

    python benchmarks/loading.py [--log TRAIN.jsonl] [--pictures 400] [--markdown out.md]

Two kinds: JPEG files of 640 x 480 as COCO has them, with the transforms of blip2_stage1_vit_g
(RandomResizedCrop, flip), for several numbers of worker processes; and the scenes that the embedded model is
trained on.  ``--log``: the log of a training run, whose samples per second the feed is to surpass three
times; on a CPU a full-width run trains less than one pair per second.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

from bench import hardware  # noqa: E402
from train_full_width import draw  # noqa: E402

from mindblip2 import Blip2Processor, load_config  # noqa: E402
from mindblip2.trainer.data_sources import training_feed  # noqa: E402

BATCH = 8


def speed(config, epochs=2):
    """Samples per second of each epoch's feed; the start of its workers is part of it."""
    feed, speeds = training_feed(config, Blip2Processor.from_config(config.processor)), []
    for epoch in range(epochs):
        start = time.perf_counter()
        samples = sum(len(batch["input_ids"]) for batch in feed.epoch(epoch))
        speeds.append(samples / (time.perf_counter() - start))
    return speeds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--log", type=Path, help="train.jsonl of the run to compare with")
    parser.add_argument("--markdown", help="write the report here too")
    options = parser.parse_args()
    machine = hardware()
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "data", options.pictures, (640, 480))
        for workers in sorted({0, 1, os.cpu_count()}):
            cases[
                f"640 x 480 JPEG, {workers} worker processes" if workers else "640 x 480 JPEG, in a thread"
            ] = load_config(
                "blip2_stage1_vit_g",
                {
                    "train_dataset.data_loader.dataset_dir": f"{folder}/data",
                    "train_dataset.data_loader.annotation_files": ["train.json"],
                    "train_dataset.data_loader.image_dirs": ["images"],
                    "runner_config.batch_size": BATCH,
                    "train_dataset.num_parallel_workers": workers,
                },
            )
        cases["scenes of digits"] = load_config(
            "blip2_digits", {"train_dataset.data_loader.scenes": options.pictures}
        )
        figures = {name: speed(config) for name, config in cases.items()}
    text = (
        f"# Training data alone, {date.today()}\n\n{machine}\n\nCommand: `python {' '.join(sys.argv)}`\n\n"
        f"{report(figures, _trained(options.log))}\n"
    )
    print(text)
    if options.markdown:
        Path(options.markdown).write_text(text, encoding="utf-8")


def report(figures, trained=None):
    """The figures as Markdown: {case: [samples/s of each epoch]}; ``trained``: samples per second of a
    training run."""
    lines = ["| data | samples/s | ms per sample |", "|---|---|---|"]
    lines = [line + more if trained else line for line, more in zip(lines, (" times the model's |", "---|"))]
    for name, speeds in figures.items():
        best = max(speeds)
        lines.append(
            f"| {name} | {best:.0f} | {1000 / best:.2f} |" + (f" {best / trained:.1f} |" if trained else "")
        )
    return "\n".join(
        lines + (["", f"The training run of the log: {trained:.2f} samples/s (median)."] if trained else [])
    )


def _trained(log):
    """Median of samples per second in a log, or None."""
    if log is None:
        return None
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return float(
        np.median([entry["samples_per_second"] for entry in entries if "samples_per_second" in entry])
    )


if __name__ == "__main__":
    main()
