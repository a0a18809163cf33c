"""torch and MindSpore side by side, and torch alone for another host: ``run`` and ``dump`` of the command line."""

import argparse
import ctypes
from collections.abc import Iterator
from contextlib import nullcontext, suppress

import torch

from convert.files import read
from mindblip2.config import load_config
from mindblip2.sections import ConfigError
from parity.compare import Row, failing, not_passing
from parity.desk import Desk, Progress, Scribe
from parity.dumpfile import Writer
from parity.inputs import captions, pictures
from parity.llm_cases import MODELS, LanguageSuite
from parity.llm_defects import LANGUAGE_MUTATIONS
from parity.llm_stream import LanguageStream, Seeded
from parity.mutations import MUTATIONS, defective, verdict_of
from parity.nets import pynative
from parity.ours_chained import batch
from parity.selection import Selection
from parity.stream import Stream, Window
from parity.suite import Suite
from parity.weights import TINY, Weights, make_nets

M_MMAP_THRESHOLD = -3  # of mallopt
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def selection(options: argparse.Namespace) -> Selection:
    """Which comparisons the command line wants."""
    return Selection(tuple(options.case or ()), options.mode)


def run(options: argparse.Namespace) -> list[Row]:
    """All rows."""
    give_back()
    return [row for half in halves(options) for row in half(desk_of(options, half.__name__))]


def give_back() -> None:
    """Let the C library give every large array back to the system when it is freed: kept for later, as by default, the holes between
    them grew to gigabytes at full width.  Does nothing where the C library is not glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 1 << 20)


def desk_of(options: argparse.Namespace, half: str) -> Desk:
    """A desk that compares; with ``--resume`` one that remembers."""
    if not options.resume:
        return Desk(selection(options))
    key = {name: value for name, value in vars(options).items() if name not in ("report", "resume", "export")}
    return Desk(selection(options), Progress(f"{options.resume}/{half}", key))


def halves(options: argparse.Namespace) -> list:
    """What is to be run: functions from a desk to rows."""
    pynative()
    config = load_config(options.config).model.model_config
    if options.only == "language" and config.text_config is None:
        raise ConfigError(f"{options.config} has no text_config, so there is no language model to compare")

    def vision(desk: Desk) -> Iterator[Row]:
        weights = Weights(config, options.weights, options.vit_path, options.ckpt, options.seed)
        stream = Stream(Window(weights, config, DTYPES[options.dtype]), pictures(options.batch, config.vision_config.image_size),
                        captions(options.batch, config), options.blocks, desk)
        with defective(stream.nets.ours, options.defect) if options.defect else nullcontext():
            yield from (row for rows in stream for row in rows)
        desk.fingerprints |= stream.window.fingerprints

    def language(desk: Desk) -> Iterator[Row]:
        state = read(options.llm_path) if options.llm_path else Seeded(config.text_config, seed=options.seed)
        stream = LanguageStream(config.text_config, state, options.blocks, desk, DTYPES[options.dtype])
        yield from (row for rows in stream for row in rows)
        desk.fingerprints |= stream.fingerprints

    found = [vision] if options.only != "language" else []
    return found + ([language] if options.only != "vision" and config.text_config is not None else [])


def dump(options: argparse.Namespace) -> str:
    """Write the .npz; returns what to say."""
    with Writer(options.output) as writer:
        desk = Scribe(writer, selection(options))
        for half in halves(options):
            writer.half = half.__name__
            for _ in half(desk):
                pass
        config = load_config(options.config).model.model_config
        writer.close(config=config.to_dict(), seed=options.seed, dtype=options.dtype, fingerprints=desk.fingerprints,
                     weights=weights_of(options), torch=torch.__version__)
    return (f"{writer.path}: {len(writer.entries)} comparisons, {writer.path.stat().st_size / 2**20:,.1f} MB. On the other host: "
            f"python -m parity check {writer.path.name}" + (" --ckpt FILE" if options.weights else ""))


def weights_of(options: argparse.Namespace) -> str:
    """Where the weights came from, in words."""
    return options.weights or options.llm_path or f"seeded random numbers, seed {options.seed}"


def suites() -> dict[str, Suite]:
    """All cases on tiny networks: "" is stage 1, the others are the language models by name."""
    pynative()
    inputs = batch(pictures(4, TINY.vision_config.image_size), captions(4, TINY)[0])
    return {"": Suite(make_nets(Weights(TINY), TINY), inputs)} | {name: LanguageSuite(name) for name in MODELS}


def mutation_table() -> dict:
    """Name of every defect -> (suite, mutation)."""
    return {name: ("", mutation) for name, mutation in MUTATIONS.items()} | LANGUAGE_MUTATIONS


def run_mutations() -> tuple[list[dict], int]:
    """Run every deliberate defect, printing a line for each; returns the lines as records, and the exit code."""
    made = suites()
    rows = {case: found for suite in made.values() for case, found in suite.rows().items()}
    bad, looks = failing(rows), not_passing(rows) - failing(rows)
    named = f", to be looked at: {sorted(looks)}" if looks else ""
    print(f"already without a defect: {sorted(bad)}" if bad else f"without a defect {len(rows)} cases, none fails{named}")
    records = []
    for name, (suite, mutation) in mutation_table().items():
        verdict, weakest = verdict_of(made[suite], mutation)
        print(f"{verdict}  {name:<40}weakest ratio {weakest:<10.3g}{mutation.caught}", flush=True)
        records.append({"verdict": verdict, "defect": name, "weakest ratio": weakest, "caught": mutation.caught})
    return records, int(bool(bad) or any(record["verdict"] != "caught" for record in records))
