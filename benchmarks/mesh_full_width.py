"""Are layers of the published widths, split over two processes, those of one process?  Judged as parity
judges: by torch's own rounding.

    python benchmarks/mesh_full_width.py [--layers vit,qformer,llama] [--modes pynative,graph] [--small]
        [--markdown FILE]

One block of ViT-g, one layer of the Q-Former (queries with cross-attention, and text), one layer of Llama-7B,
with parity's seeded weights.  Compared are the output, and the gradients of a random linear function of it by
the inputs and by every weight: torch in float64 is the truth, torch in float32 the noise, and
mindblip2/parity/compare.py has the limits.  Ours runs in one process, and as a mesh of 1 x 2 under msrun
(mesh_layer.py); what both processes hold whole must be the same, bit for bit.  MISTAKES of model parallelism
are judged in the same way and must fail.  The exit code is 0 only if every tensor passes and every mistake is
caught.  ``--small`` tries the script with small layers.  Takes 8 GB, and 6 GB on the disk for a while.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")
ROOT, HERE = Path(__file__).resolve().parent.parent, Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(HERE)]  # also where the tests load this file by its path

import numpy as np  # noqa: E402
from bench import hardware  # noqa: E402
from mesh_layer import LAYERS, MISTAKES, MODES, case_of, configured, place  # noqa: E402

from mindblip2.parity.candidate import language_model  # noqa: E402
from mindblip2.parity.compare import all_pass, compare  # noqa: E402
from tests.mesh.launch import environment, launch  # noqa: E402

CARDS = (1, 2)
SECONDS = 1800  # that a mesh may take
PROGRAM = HERE / "mesh_layer.py"
LEGEND = [
    "Errors are |ours - truth| / |truth|, of the worse of the modes; the true gradient of a key's bias is "
    "0, so there they say",
    "nothing.  Ratios are errors over those of torch in float32: up to 4 passes, above 10 fails "
    '(mindblip2/parity/compare.py).  "Apart": the',
    'largest difference between both processes in what each holds whole.  "d x" is the gradient by x.',
]


def run_all(folder, layers, modes, small):
    """Start one process, then two.  Returns the runs and those with a mistake; raises RuntimeError with what
    was said where one fails."""
    runs = [f"{layer}:{mode}" for layer in layers for mode in modes]
    wrong = [
        f"{layer}:pynative:{name}"
        for layer in layers
        for name, (seen, *_) in MISTAKES.items()
        if layer in seen
    ]
    size = "small" if small else "full"
    done = subprocess.run(
        [sys.executable, PROGRAM, folder, "1", size, *runs],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    code, said = done.returncode, done.stdout
    if code == 0:
        code, said = launch(
            2, PROGRAM, folder, "2", size, *runs, *wrong, logs=folder / "logs", seconds=SECONDS
        )
    if code != 0:
        raise RuntimeError(f"a process ended with {code}:\n{said[-4000:]}")
    return runs, wrong


def torch_sides(case, config):
    """What torch gives in float32 and in float64, one after the other: {name: array} each."""
    import torch

    from mindblip2.parity.cases.stage1 import their_layer
    from mindblip2.parity.reference.language_model import language_twin
    from mindblip2.parity.reference.outputs import run_theirs
    from mindblip2.parity.weights import Weights, make_twin

    theirs = {
        "vit": lambda twin, x: twin.visual_encoder.blocks[0](x),
        "qformer": lambda twin, x, image, ids: their_layer(twin, x, 0, "match", ids, image),
        "llama": lambda twin, x, mask: language_model.kept(twin.layer(0, x, mask), mask),
    }
    case, found = dataclasses.replace(case, theirs=theirs[case.name]), []
    for dtype in (torch.float32, torch.float64):
        with torch.no_grad():
            twin = (
                language_twin(language_model.one_layer(config.text_config), dtype)
                if case.name == "llama"
                else make_twin(Weights(config), config, dtype)
            )
        found.append({name or "output": array for name, array in run_theirs(case, twin).items()})
    return found


def judged(folder, runs, wrong, layers, small):
    """{layer: {tensor: (torch's own error, {(cards, run): Row})}} of the runs, {run: [Row]} of those with a
    mistake, and {(cards, run): how far the cards are apart} of all.  Raises ValueError where a process gave
    other tensors than torch."""
    config, tensors, caught, apart = configured(small), {}, {}, {}
    for layer in layers:
        torch32, truth = torch_sides(case_of(layer, config), config)
        tensors[layer] = {
            name: (compare(name, torch32[name], torch32[name], truth[name]).rel_frobenius, {})
            for name in truth
        }
        for cards, run in [(cards, run) for cards in CARDS for run in runs] + [(2, run) for run in wrong]:
            if run.split(":")[0] == layer:
                ours = {path.stem: path for path in place(folder, cards, run).glob("*.npy")}
                apart[cards, run] = float(np.load(ours.pop("apart")))
                if set(ours) != set(truth):
                    raise ValueError(
                        f"{run} on {cards}: not the same tensors as torch: {sorted(set(ours) ^ set(truth))}"
                    )
                rows = [compare(name, np.load(ours[name]), torch32[name], truth[name]) for name in truth]
                if run in wrong:
                    caught[run] = rows
                for row in rows if run in runs else ():
                    tensors[layer][row.name][1][cards, run] = row
    return tensors, caught, apart


def as_it_should_be(tensors, caught, apart):
    """Whether every tensor passes, the cards agree, and every mistake is caught."""
    rows = [row for layer in tensors.values() for _, found in layer.values() for row in found.values()]
    return (
        all_pass(rows)
        and not any(far for (_, run), far in apart.items() if run not in caught)
        and all(any(row.verdict == "fail" for row in found) for found in caught.values())
    )


def report(tensors, caught, apart):
    """The figures as Markdown."""
    lines = table(
        "layer", "mode", "tensors", "worst ratio, one process", "worst ratio, mp = 2", "apart", "verdict"
    )
    for layer, found in tensors.items():
        for run in dict.fromkeys(run for _, rows in found.values() for _, run in rows):
            one, two = ([rows[cards, run] for _, rows in found.values()] for cards in CARDS)
            lines.append(
                f"| {LAYERS[layer][0]} | {run.split(':')[1]} | {len(one)} | {worst(one).ratio:.2f} | "
                f"{worst(two).ratio:.2f} | {apart[2, run]:g} | {worst(one + two).verdict} |"
            )
    lines += ["", *table("mistake", "layer", "tensors that fail", "worst ratio", "caught")]
    for run, rows in caught.items():
        layer, _, mistake = run.split(":")
        fails = sum(row.verdict == "fail" for row in rows)
        lines.append(
            f"| {mistake} | {LAYERS[layer][0]} | {fails} of {len(rows)} | "
            f"{worst(rows).ratio:.3g} | {'yes' if fails else 'NO'} |"
        )
    lines += [
        "",
        *LEGEND,
        "",
        *table(
            "layer", "tensor", "torch float32", "one process", "mp = 2", "ratio, one", "ratio, two", "verdict"
        ),
    ]
    for layer, found in tensors.items():
        for name, (noise, rows) in found.items():
            one, two = (worst([row for (count, _), row in rows.items() if count == cards]) for cards in CARDS)
            lines.append(
                f"| {layer} | {name} | {noise:.2e} | {one.rel_frobenius:.2e} | {two.rel_frobenius:.2e} | "
                f"{one.ratio:.2f} | {two.ratio:.2f} | {worst([one, two]).verdict} |"
            )
    return "\n".join(lines)


def table(*names):
    """The head of a table."""
    return ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]


def worst(rows):
    return max(rows, key=lambda row: row.ratio)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", default=",".join(LAYERS))
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument(
        "--small", action="store_true", help="small layers: tries the script, shows nothing about full width"
    )
    parser.add_argument("--markdown", help="write the report here too")
    options = parser.parse_args()
    machine, started, layers = hardware(), time.time(), options.layers.split(",")
    with tempfile.TemporaryDirectory() as folder:
        runs, wrong = run_all(Path(folder), layers, options.modes.split(","), options.small)
        found = judged(Path(folder), runs, wrong, layers, options.small)
    command = " ".join(sys.argv)
    text = (
        f"# Layers of full width on mp = 2, {date.today()}\n\n{machine}\n\nCommand: `python {command}`, "
        f"{time.time() - started:.0f} s\n\n{report(*found)}\n"
    )
    print(text)
    if options.markdown:
        Path(options.markdown).write_text(text, encoding="utf-8")
    sys.exit(not as_it_should_be(*found))


if __name__ == "__main__":
    main()
