"""Time and peak memory of loading the full stage-1 model: mindblip2 from a .ckpt, the torch reference model
from a .pth with the same weights.

    python benchmarks/load.py blip2_stage1.pth blip2_stage1.ckpt [--rounds 3]

Each load is a process of its own and adds up all weights, since torch maps the file and reads a page when it
is used; the sides take turns.  The peak is the process's, libraries included.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from bench import hardware

ROOT = Path(__file__).resolve().parent.parent
TORCH = """
import time
import torch
from mindblip2.parity.reference.model import load
start = time.perf_counter()
model = load({path!r})
total = sum(float(p.detach().abs().sum()) for p in model.parameters())
"""
MINDSPORE = """
import time
import mindspore
from mindblip2 import Blip2Qformer
start = time.perf_counter()
model = Blip2Qformer.from_pretrained("blip2_stage1_vit_g", {path!r})
total = sum(float(abs(p.asnumpy()).sum()) for p in model.get_parameters())
"""
AFTER = """
import json
peak = next(int(row.split()[1]) / 1e6 for row in open("/proc/self/status") if row.startswith("VmHWM"))
print(json.dumps([time.perf_counter() - start, peak, total]))
"""


def one(code, path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code.format(path=path) + AFTER],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pth")
    parser.add_argument("ckpt")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    figures = {"mindblip2": [], "torch reference model": []}
    for _ in range(options.rounds):
        figures["mindblip2"].append(one(MINDSPORE, options.ckpt))
        figures["torch reference model"].append(one(TORCH, options.pth))
    print(hardware() + "\n\n| side | seconds | peak GB |\n|---|---|---|")
    for name, rows in figures.items():
        seconds, peak, _ = np.median(rows, axis=0)
        print(f"| {name} | {seconds:.1f} | {peak:.2f} |")


if __name__ == "__main__":
    main()
