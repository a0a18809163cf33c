"""What ``recompute_config.recompute`` saves: peak memory and time of a training step, with and without, each
in a process of its own.

    python benchmarks/recompute.py [--layers 12] [--width 512] [--batch 16] [--steps 5]

A ViT and a Q-Former of that width and so many layers are both trained, in graph mode, on random pictures of
112 pixels and texts of 32 tokens.  Weights, gradients and moments are the same with and without; what is
saved are activations.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from bench import hardware  # noqa: E402

TEXT = 32


def step(layers, width, batch, steps, again):
    """(seconds of the first step, median of the others, peak memory before and after the steps in GB, losses)
    in this process."""
    import mindspore as ms
    import numpy as np

    from mindblip2 import Blip2Config, Blip2Qformer, device
    from mindblip2.config import ContextConfig, OptimizerConfig
    from mindblip2.trainer.tasks.pretrain import recompute
    from mindblip2.trainer.train_step import TrainStep

    device.use(ContextConfig(mode=0))
    ms.set_seed(1)
    heads = width // 64
    model = Blip2Qformer(
        Blip2Config(
            freeze_vision=False,
            vision_config={
                "image_size": 112,
                "hidden_size": width,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "intermediate_size": 4 * width,
            },
            qformer_config={
                "hidden_size": width,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "intermediate_size": 4 * width,
                "encoder_width": width,
                "vocab_size": 1000,
                "bos_token_id": 999,
            },
        )
    ).set_train()
    if again:
        recompute(model)
    train, rng = TrainStep(model, OptimizerConfig()), np.random.default_rng(0)
    batch = {
        "image": rng.standard_normal((batch, 3, 112, 112), dtype=np.float32),
        "input_ids": rng.integers(1, 999, (batch, TEXT)).astype(np.int32),
    }
    before, seconds, losses = peak(), [], []
    for number in range(steps + 1):
        start = time.perf_counter()
        model.noise.set(1, number)
        losses.append(train([batch], 1e-4)["loss"])
        seconds.append(time.perf_counter() - start)
    return seconds[0], float(np.median(seconds[1:])), before, peak(), losses


def peak():
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) / 1e6 for line in status if line.startswith("VmHWM"))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("layers", 12), ("width", 512), ("batch", 16), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--worker", choices=("without", "with"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(
            json.dumps(
                step(options.layers, options.width, options.batch, options.steps, options.worker == "with")
            )
        )
        return
    print(
        f"{hardware()}\n\nCommand: `python {' '.join(sys.argv)}`\n\n"
        "| recompute | peak before the first step, GB | peak, GB | s per step | first step, s | last loss |\n"
        "|---|---|---|---|---|---|"
    )
    for kind in ("without", "with"):
        done = subprocess.run(
            [sys.executable, *sys.argv, "--worker", kind],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "3"},
        )
        first, other, before, most, losses = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {kind} | {before:.2f} | {most:.2f} | {other:.2f} | {first:.0f} | {losses[-1]:.6f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
