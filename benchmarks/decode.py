"""How fast a language model writes: layers of the published width against transformers' own, paired, two
threads each.

    python benchmarks/decode.py [--rounds 3] [--models llama,opt] [--layers 4] [--new 512] [--small]
        [--markdown benchmarks/decode.md]

Random weights in float32, batch 1, greedy, a key-value cache on both sides: Llama-7B's layers (4096 wide,
feed-forwards of 11008, 32 heads, a head of 32000 words) and OPT-2.7B's (2560, 10240, 32, 50272).  What is
timed is each side's ``generate``: ours of the whole model of stage 2, with a ViT and a Q-Former that take no
time, from the picture to each token as it is handed on; transformers' from the same number of embeddings.
torch runs twice, as stock PyTorch and with MKL's AMD slow path disabled: see bench.py.

Writing a token reads every weight once, so its measure is the memory's: bytes of the weights over seconds, as
a share of what two threads reach that do nothing but read (NumPy's dot product of an array of 1 GB with
itself, half of it in each thread, best of ten).

All sides together need 15 GB for Llama and 8 GB for OPT: run it alone.  About half an hour.
"""

import argparse
import os
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where the tests load this file by its path

from bench import hardware, measure, start_sides  # noqa: E402

TITLES = {"llama": "Llama-7B", "opt": "OPT-2.7B"}
TOKENS, FEW, ENDS = 64, 30, 32  # prefilled; the usual max_new_tokens; how many at either end are compared
PROMPT, QUERIES = 16, 32  # tokens of the prompt for which graphs are counted; it fills its step


def figures_of(model, options, folder):
    """What all sides say of a model, in one dict."""
    sides = start_sides(folder, "language_worker.py", MINDBLIP2_BENCH_LLM=f"{model} {options.layers}")
    few, many = f"generate {TOKENS} {FEW}", f"generate {TOKENS} {options.new}"
    seconds = measure(sides, [f"prefill {TOKENS}", few, many], options.rounds)
    memory = {name: side.ask("memory") for name, side in sides.items()}
    ours = {
        what.split()[0]: sides["mindblip2"].ask(what)
        for what in (f"graphs {QUERIES + PROMPT}", "weights", "read")
    }
    for side in sides.values():
        side.end()
    return {
        "prefill": seconds[f"prefill {TOKENS}"],
        "few": seconds[few],
        "many": seconds[many],
        "memory": memory,
        **ours,
    }


def report(title, found, options):
    """The figures of one model as Markdown."""
    names = list(found["memory"])
    bytes_read, bandwidth = found["weights"] / 1e9, found["read"]
    many = {name: np.array(rounds) for name, rounds in found["many"].items()}
    rows = {
        f"prefill of {TOKENS} places": found["prefill"],
        f"a token of {FEW}": medians(found["few"]),
        f"a token of {options.new}": medians(many),
    }
    rows |= {
        f"… of the first {ENDS}": medians({name: one[:, :ENDS] for name, one in many.items()}),
        f"… of the last {ENDS}": medians({name: one[:, -ENDS:] for name, one in many.items()}),
    }
    lines = [
        f"## {options.layers} layers of {title} and the head",
        "",
        "| | "
        + " | ".join(f"{n}, ms" for n in names)
        + " | "
        + " | ".join(f"{n} / mindblip2" for n in names[1:])
        + " | "
        + " | ".join(f"{n}, of bandwidth" for n in names)
        + " |",
        "|---" * (3 * len(names)) + "|",
    ]
    for case, sides in rows.items():
        ours = np.array(sides[names[0]])
        cells = [f"{1000 * np.median(sides[n]):.1f}" for n in names] + [
            f"{np.median(np.array(sides[n]) / ours):.2f}" for n in names[1:]
        ]
        cells += [
            "" if case.startswith("prefill") else f"{bytes_read / np.median(sides[n]) / bandwidth:.0%}"
            for n in names
        ]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    slower = {
        n: np.median(np.median(one[:, -ENDS:], 1) / np.median(one[:, :ENDS], 1)) for n, one in many.items()
    }
    first, more, longer = found["graphs"]
    return "\n".join(
        lines
        + [
            "",
            f"The last {ENDS} of {options.new} tokens against the first {ENDS}, median of the ratios: "
            + ", ".join(f"{n} {slower[n]:.2f}" for n in names)
            + ".",
            f"Weights read per token: {bytes_read:.2f} GB.  "
            f"Two threads that only read: {bandwidth:.1f} GB/s.",
            f"Graphs compiled: {first} for the first picture with a prompt of {PROMPT} tokens, "
            f"{more} for ten more with other prompts of {PROMPT - 7} to {PROMPT} tokens, "
            f"{longer} for the first prompt of {PROMPT + 1}.",
            "Peak memory: "
            + ", ".join(f"{n} {found['memory'][n] / 1e9:.2f} GB" for n in names)
            + f" (weights {bytes_read:.2f} GB, and the "
            "word embeddings where the head is not the same).",
        ]
    )


def medians(rounds):
    """{side: the median second of each round}."""
    return {name: np.median(one, 1) for name, one in rounds.items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default=",".join(TITLES))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--new", type=int, default=512, help="tokens of the long text")
    parser.add_argument(
        "--small", action="store_true", help="narrow models: tries the script, measures nothing"
    )
    parser.add_argument("--markdown", help="write the report here too")
    options = parser.parse_args()
    os.environ["MINDBLIP2_BENCH_SMALL"] = "1" if options.small else "0"
    started, machine = time.time(), hardware()
    text = (
        f"# Writing against PyTorch, {date.today()}\n\n{machine}\n\nCommand: `python {' '.join(sys.argv)}`\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models.split(","):
            text += f"\n{report(TITLES[model], figures_of(model, options, folder), options)}\n"
    text += (
        "\nA ratio above 1 says that mindblip2 is faster.  "
        f"{options.rounds} rounds, medians, ratios within a round; two threads each; "
        f"{time.time() - started:.0f} s.\n"
    )
    print(text)
    if options.markdown:
        Path(options.markdown).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
