"""What a training run shows: a progress bar, one JSON line per log interval, curves, and warnings that a
person can act on."""

import json
import logging
import math
import sys
import time
from pathlib import Path

from mindblip2.file_io import atomic_file, write_text
from mindblip2.progress import progress

logger = logging.getLogger("mindblip2")

CURVES = (
    ("losses", ("itc", "itm", "lm")),
    ("accuracy in the batch", ("i2t_acc", "t2i_acc", "itm_acc", "word_acc")),
    ("temperature", ("temp",)),
    ("learning rate", ("lr",)),
    ("norm of the gradients", ("grad_norm",)),
    ("held-out retrieval, %", ("eval_txt_r1", "eval_img_r1", "eval_txt_r_mean", "eval_img_r_mean")),
    ("held-out losses", ("eval_itc", "eval_itm", "eval_lm")),
    ("held-out captions", ("eval_CIDEr", "eval_Bleu_4", "eval_ROUGE_L")),
)
# 0.6365: ITM that always answers "one in three is a pair"
CHANCE = -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)
SHOWN = (
    "itc",
    "itm",
    "lm",
    "i2t_acc",
    "t2i_acc",
    "itm_acc",
    "word_acc",
    "temp",
    "lr",
    "grad_norm",
    "samples_per_second",
)
STUCK_AFTER, STUCK_WITHIN = 1000, 0.003


class TrainingLog:
    """Collects one dict of numbers per step and writes their means every ``every`` steps to
    ``folder``/train.jsonl.

    ``start``: steps already made by the run that is resumed; later lines of its log are dropped."""

    def __init__(self, folder, total_steps, every, start=0, summary=False):
        self.folder, self.every, self.step = Path(folder), every, start
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = _earlier(self.folder / "train.jsonl", start)
        write_text(self.folder / "train.jsonl", "".join(json.dumps(entry) + "\n" for entry in self.log))
        self._file = open(self.folder / "train.jsonl", "a", encoding="utf-8")
        self._bar = progress(total=total_steps, initial=start, desc="train", unit="step")
        self._summary = _summary_record(self.folder / "summary") if summary else None
        self._unreadable = 0
        self._total_steps, self._window, self._since, self._warned = (
            total_steps,
            [],
            time.perf_counter(),
            False,
        )

    def add(self, numbers, pictures, unreadable=0):
        """The numbers of one step over ``pictures`` pictures, of which ``unreadable`` could not be read so
        far; returns the log's new entry, or None between two entries."""
        self.step += 1
        self._unreadable = unreadable
        self._window.append((numbers, pictures))
        self._bar.update()
        if self.step % self.every and self.step != self._total_steps:
            return None
        entry = self._entry()
        self.log.append(entry)
        self._bar.set_postfix_str(
            " ".join(f"{name} {entry[name]:.3g}" for name in SHOWN if entry.get(name) is not None),
            refresh=False,
        )
        self._write(entry)
        self._warn()
        return entry

    def add_evaluation(self, figures, seconds):
        """An entry of its own for figures on held-out data, named "eval_…"; their seconds are not the
        training's."""
        self._since += seconds
        entry = {
            "step": self.step,
            **{f"eval_{name}": value for name, value in figures.items()},
            "eval_seconds": seconds,
        }
        self.log.append(entry)
        self._write(entry)
        return entry

    def close(self):
        """Draw the curves and close all files.  What cannot be written any more is a warning: an error may be
        the reason for closing."""
        self._bar.close()
        for close in (
            self._file.close,
            self._summary.close if self._summary is not None else None,
            lambda: draw_curves(self.log, self.folder / "loss_curve.png"),
        ):
            try:
                close and close()
            except OSError as error:
                logger.warning("the log in %s is not complete: %s", self.folder, error)

    def _entry(self):
        seconds, self._since = time.perf_counter() - self._since, time.perf_counter()
        window, self._window = self._window, []
        skipped = sum(bool(numbers.get("skipped")) for numbers, _ in window)
        made = [numbers for numbers, _ in window if not numbers.get("skipped")]
        means = {
            name: _mean(
                [numbers[name] for numbers in (made if name == "grad_norm" else [n for n, _ in window])]
            )
            for name in window[0][0]
            if name != "skipped"
        }
        speed = sum(pictures for _, pictures in window) / max(seconds, 1e-9)
        return {
            "step": self.step,
            **means,
            "samples_per_second": speed,
            "seconds": seconds,
            "skipped": skipped,
            **({"unreadable": self._unreadable} if self._unreadable else {}),
        }

    def _write(self, entry):
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        if self._summary is None:
            return
        from mindspore import Tensor

        for name, value in ((name, value) for name, value in entry.items() if value is not None):
            self._summary.add_value("scalar", name, Tensor(float(value)))
        self._summary.record(self.step)

    def _warn(self):
        recent = [
            entry["itm"] for entry in self.log if "itm" in entry and entry["step"] > self.step - STUCK_AFTER
        ]
        long_enough = self.step >= STUCK_AFTER and self.log[0]["step"] <= self.step - STUCK_AFTER + self.every
        if (
            not self._warned
            and long_enough
            and recent
            and all(abs(value - CHANCE) < STUCK_WITHIN for value in recent)
        ):
            self._warned = True
            logger.warning(
                "ITM has been at %.4f for %d steps, the loss of a model that ignores the picture: check that "
                "captions "
                "belong to their pictures (run_blip2.py --run_mode check), that the ViT's weights are "
                "loaded, and the "
                "learning rate",
                CHANCE,
                STUCK_AFTER,
            )


def _mean(values):
    """None where there are none: an overflowed step has no norm, and JSON no infinity."""
    return sum(map(float, values)) / len(values) if values else None


def _earlier(path, start):
    if not start or not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:  # the line that was being written when the run was killed
            break
    return [entry for entry in entries if entry["step"] <= start]


def _summary_record(folder):
    from mindspore import SummaryRecord

    return SummaryRecord(str(folder))


def draw_curves(log, path):
    """All that was logged over the steps as one picture; returns False where matplotlib is not installed or
    nothing was logged."""
    try:
        import matplotlib
    except ImportError:
        return False
    shown = [
        (title, [name for name in names if any(name in entry for entry in log)]) for title, names in CURVES
    ]
    shown = [(title, names) for title, names in shown if names]
    if not shown:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = -(-len(shown) // 2)
    figure, axes = pyplot.subplots(rows, 2, figsize=(11, 3 * rows), squeeze=False)
    for axis, (title, names) in zip(axes.flat, shown):
        for name in names:
            points = [(entry["step"], entry[name]) for entry in log if name in entry]
            axis.plot(*zip(*points), label=name, marker="." if name.startswith("eval_") else None)
        axis.set(title=title, xlabel="step")
        axis.legend()
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(shown) :]:
        axis.remove()
    figure.tight_layout()
    _save_figure(figure, path)
    return True


def _save_figure(figure, path):
    from matplotlib import pyplot

    try:
        with atomic_file(path, "wb") as file:
            figure.savefig(file, dpi=110, format=Path(path).suffix[1:] or "png")
    finally:
        pyplot.close(figure)


def compare(folders, path):
    """Draw the losses of several runs over one another; prints and returns how far the others are from the
    first, at most, as a share."""
    logs = [_earlier(Path(folder) / "log" / "train.jsonl", math.inf) for folder in folders]
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in ("itc", "itm", "lm") if name in logs[0][0]]
    figure, axes = pyplot.subplots(1, len(names), figsize=(5 * len(names), 3.5), squeeze=False)
    furthest = 0.0
    for axis, name in zip(axes.flat, names):
        for number, (folder, log) in enumerate(zip(folders, logs)):
            axis.plot(
                [entry["step"] for entry in log],
                [entry[name] for entry in log],
                label=Path(folder).name,
                linewidth=4 - 3 * number / max(len(folders) - 1, 1),
                alpha=0.5 + 0.5 * number / max(len(folders) - 1, 1),
            )
            furthest = max(
                [furthest, *(abs(entry[name] / first[name] - 1) for entry, first in zip(log, logs[0]))]
            )
        axis.set(title=name, xlabel="step")
        axis.legend()
        axis.grid(alpha=0.3)
    figure.tight_layout()
    _save_figure(figure, path)
    print(
        f"{' and '.join(Path(folder).name for folder in folders)}: losses differ by at most {furthest:.2g} "
        "of themselves over "
        f"{logs[0][-1]['step']} steps; curves are saved at: {path}"
    )
    return furthest


if __name__ == "__main__":
    compare(sys.argv[2:], sys.argv[1])
