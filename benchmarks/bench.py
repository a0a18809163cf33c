"""mindblip2 against PyTorch at the published size, paired: the sides are timed in turn in one run, two
threads each.

    python benchmarks/bench.py [--rounds 5] [--cases vit,see,match,classify,step] [--graph_kernel] [--small]
        [--markdown out.md]

torch runs twice: stock PyTorch, and with MKL's AMD slow path disabled (a preloaded library of one line
answers MKL's check for an Intel processor with yes; on Intel hosts the two are the same).  Figures are
medians over the rounds; ratios are medians of the ratios within a round.  Memory is taken from the same
processes.

step: a stage-1 training step (forward, backward, AdamW) on the given output of the ViT, batch 8; torch does
what LAVIS does, without dropout on both sides.  All processes together need 28 GB then: with --in_turn only
one process runs at a time, and its first answer is not counted.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
CASES = {
    "vit": ("vit 1", "vit 4"),
    "see": ("see 1", "see 4"),
    "match": ("match 1", "match 4"),
    "classify": ("classify 5", "classify 100"),
    "step": ("step 8",),
}
# multiplications and additions of 39 ViT-g blocks per token: qkv, proj, mlp; and attention over 257 tokens
VIT_FLOP = 2 * 39 * 257 * (4 * 1408 * 1408 + 2 * 1408 * 6144 + 2 * 257 * 1408)
GEMM_FLOP = 2 * 10 * 1028 * 2048 * 2048
SLOW_PATH_DISABLED = "MKL's AMD slow path disabled"  # in the names of the workers and the tables


class Side:
    """A worker process."""

    def __init__(self, kind, worker="worker.py", **environment):
        self.worker = worker
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / worker), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE.parent,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(HERE.parent), **environment},
        )

    def ask(self, case):
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(
                f"the worker ended at {case!r}; run python benchmarks/{self.worker} by hand to see why"
            )
        return json.loads(answer)

    def end(self):
        self.process.stdin.close()
        self.process.wait()


class Turn:
    """A side whose process lives only while it is asked, where all together do not fit into memory; the
    second answer counts."""

    def __init__(self, *arguments, **environment):
        self.arguments, self.environment, self.memory = arguments, environment, 0

    def ask(self, case):
        if case == "memory":
            return self.memory
        side = Side(*self.arguments, **self.environment)
        side.ask(case)
        answer, memory = side.ask(case), side.ask("memory")
        side.end()
        self.memory = max(self.memory, memory)
        return answer

    def end(self):
        pass


def start_sides(folder, worker="worker.py", kind=Side, **environment):
    """The workers {name: ``kind``}: mindblip2, stock PyTorch, and PyTorch with MKL's AMD slow path disabled
    where there is a C compiler."""
    library = slow_path_override(folder)
    found = {
        "mindblip2": kind("mindspore", worker, **environment),
        "torch": kind("torch", worker, **environment),
    }
    if library:
        found[f"torch, {SLOW_PATH_DISABLED}"] = kind("torch", worker, **environment, LD_PRELOAD=library)
    return found


def slow_path_override(folder):
    """A library that answers MKL's check for an Intel processor with yes; None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    source, library = Path(folder) / "intel.c", Path(folder) / "intel.so"
    source.write_text("int mkl_serv_intel_cpu_true(void) { return 1; }\n")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return str(library)


def measure(sides, cases, rounds):
    """{case: {side: [seconds of each round]}}; within a round the sides take turns."""
    figures = {}
    for case in cases:
        figures[case] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, side in sides.items():
                figures[case][name].append(side.ask(case))
        print(case, {name: f"{1000 * np.median(v):.1f} ms" for name, v in figures[case].items()}, flush=True)
    return figures


def report(figures, memory, options, machine):
    """The figures as Markdown."""
    names = list(memory)
    peak = max(GEMM_FLOP / np.median(v) / 1e9 for v in figures["gemm"].values())
    lines = [
        f"# Speed against PyTorch, {date.today()}",
        "",
        machine,
        "",
        f"Command: `{' '.join(sys.argv)}`",
        "",
        f"Measured fp32 GEMM peak (ten chained 2048² products of 1028 rows, best side): {peak:.0f} GFLOP/s.",
        "",
        "| case | "
        + " | ".join(f"{n}, ms" for n in names)
        + " | "
        + " | ".join(f"{n} / mindblip2" for n in names[1:])
        + " | share of peak |",
        "|---" * (2 * len(names) + 1) + "|",
    ]
    for case, sides in figures.items():
        ours = np.array(sides[names[0]])
        ratios = [f"{np.median(np.array(sides[n]) / ours):.2f}" for n in names[1:]]
        kind, size = (case.split() + ["1"])[:2]
        flop = VIT_FLOP * int(size) if kind == "vit" else GEMM_FLOP if kind == "gemm" else None
        share = f"{flop / np.median(ours) / 1e9 / peak:.0%}" if flop else ""
        lines.append(
            f"| {case} | "
            + " | ".join(f"{1000 * np.median(sides[n]):.1f}" for n in names)
            + " | "
            + " | ".join(ratios)
            + f" | {share} |"
        )
    lines += [
        "",
        "Peak memory of the processes over all cases: "
        + ", ".join(f"{n} {memory[n] / 1e9:.2f} GB" for n in names)
        + ".",
        "",
        f"A ratio above 1 says that mindblip2 is faster. {options.rounds} rounds, medians; two threads each.",
    ]
    return "\n".join(lines) + "\n"


def hardware():
    """Processor, cores and versions."""
    from importlib.metadata import version

    model = next(
        (
            line.split(":")[1].strip()
            for line in open("/proc/cpuinfo", encoding="utf-8")
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    versions = ", ".join(f"{p} {version(p)}" for p in ("mindspore", "torch", "transformers", "numpy"))
    return (
        f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}; load average "
        f"{os.getloadavg()[0]:.1f} at the start."
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument(
        "--graph_kernel",
        action="store_true",
        help="fuse with MindSpore's graph kernels (needs g++, decorator)",
    )
    parser.add_argument(
        "--in_turn", action="store_true", help="one process at a time: slower, but in the memory of one"
    )
    parser.add_argument(
        "--small", action="store_true", help="a small Q-Former in step: tries the script, measures nothing"
    )
    parser.add_argument("--markdown", help="write the report here too")
    options = parser.parse_args()
    os.environ["MINDBLIP2_BENCH_SMALL"] = "1" if options.small else "0"
    machine = hardware()
    cases = ["gemm"] + [case for group in options.cases.split(",") for case in CASES[group]]
    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        workers = start_sides(
            folder,
            kind=Turn if options.in_turn else Side,
            MINDBLIP2_GRAPH_KERNEL="1" if options.graph_kernel else "0",
        )
        figures = measure(workers, cases, options.rounds)
        memory = {name: side.ask("memory") for name, side in workers.items()}
        for side in workers.values():
            side.end()
    text = report(figures, memory, options, machine)
    print(text + f"\ntook {time.time() - started:.0f} s")
    if options.markdown:
        Path(options.markdown).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
