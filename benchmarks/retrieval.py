"""Re-ranking in retrieval, mindblip2 against LAVIS's way in PyTorch: pairs of picture and text scored per
second.

    python benchmarks/retrieval.py [--rounds 3] [--pictures 2] [--texts 64] [--graph_kernel]
        [--small] [--markdown out.md]

Both sides score the same pairs, every picture with ``--texts`` texts, from the same given ViT-g embeddings
(257 x 1408) with a random Q-Former of the published size.  torch does what LAVIS does: the embeddings are
repeated per text, every pair makes keys and values of its picture, every text is padded to 35 tokens.
mindblip2 runs its evaluator's loop.  Two kinds of texts: all of 35 tokens, and of 8 to 20, as captions are.
What mindblip2 gains by scoring a pair once that both directions want is not in these figures. Paired as in
bench.py: the sides take turns, ratios are medians of the ratios within a round.
"""

import argparse
import os
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # also where the tests load this file by its path

from bench import hardware, measure, start_sides  # noqa: E402

LENGTHS = {"texts of 35 tokens": 35, "captions of 8 to 20 tokens": 0}


def report(figures, pairs, memory):
    """The figures as Markdown: {title: {side: [seconds of each round]}}."""
    names = list(memory)
    lines = [
        "| | "
        + " | ".join(f"{n}, pairs/s" for n in names)
        + " | "
        + " | ".join(f"mindblip2 / {n}" for n in names[1:])
        + " |",
        "|---" * 2 * len(names) + "|",
    ]
    for title, sides in figures.items():
        ours = np.array(sides[names[0]])
        ratios = [f"{np.median(np.array(sides[n]) / ours):.2f}" for n in names[1:]]
        speeds = [f"{pairs / np.median(sides[n]):.1f}" for n in names]
        lines.append(f"| {title} | {' | '.join(speeds)} | {' | '.join(ratios)} |")
    return "\n".join(
        lines + ["", "Peak memory: " + ", ".join(f"{n} {memory[n] / 1e9:.2f} GB" for n in names) + "."]
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("rounds", 3), ("pictures", 2), ("texts", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--graph_kernel",
        action="store_true",
        help="fuse with MindSpore's graph kernels (needs g++, decorator)",
    )
    parser.add_argument(
        "--small", action="store_true", help="a small Q-Former: tries the script, measures nothing"
    )
    parser.add_argument("--markdown", help="write the report here too")
    options = parser.parse_args()
    os.environ["MINDBLIP2_BENCH_SMALL"] = "1" if options.small else "0"
    head = (
        f"# Re-ranking against PyTorch, {date.today()}\n\n{hardware()}\n\nCommand: `{' '.join(sys.argv)}`\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        workers = start_sides(folder, MINDBLIP2_GRAPH_KERNEL="1" if options.graph_kernel else "0")
        cases = {
            f"rerank {options.pictures} {options.texts} {tokens}": title for title, tokens in LENGTHS.items()
        }
        figures = {cases[case]: seconds for case, seconds in measure(workers, cases, options.rounds).items()}
        memory = {name: side.ask("memory") for name, side in workers.items()}
        for side in workers.values():
            side.end()
    text = (
        f"{head}\n{report(figures, options.pictures * options.texts, memory)}\n\n"
        f"{options.pictures} pictures x {options.texts} texts, {options.rounds} rounds, medians; "
        "two threads each.\n"
    )
    print(text)
    if options.markdown:
        Path(options.markdown).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
