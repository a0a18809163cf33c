"""torch and MindSpore side by side, and torch alone for another host: ``run`` and ``dump`` of the command
line."""

import argparse
import ctypes
from collections.abc import Iterator
from contextlib import nullcontext, suppress

import torch

from mindblip2.checkpoint.ckpt import Checkpoint
from mindblip2.config import load_config
from mindblip2.config.schema import ConfigError
from mindblip2.convert.readers.files import read_state_dict
from mindblip2.parity.compare import Row
from mindblip2.parity.defects.mutations import defective
from mindblip2.parity.dump_file import Writer
from mindblip2.parity.inputs import captions, pictures
from mindblip2.parity.model_triple import pynative
from mindblip2.parity.reference.outputs import departures
from mindblip2.parity.report.timing import phase, say, sums
from mindblip2.parity.result_sinks import ComparingSink, Progress, WritingSink
from mindblip2.parity.selection import Selection
from mindblip2.parity.streaming import Stream, Window
from mindblip2.parity.weights import Stored, Weights, ckpt_of

M_MMAP_THRESHOLD = -3  # of mallopt
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def selection(options: argparse.Namespace) -> Selection:
    """Which comparisons the command line wants."""
    return Selection(tuple(options.case or ()), options.mode)


def run(options: argparse.Namespace) -> list[Row]:
    """All rows."""
    give_back()
    with phase("compared"):
        found = [row for half in halves(options) for row in half(desk_of(options, half.__name__))]
    say(sums())
    return found


def give_back() -> None:
    """Let the C library give every large array back to the system when it is freed: kept for later, as by
    default, the holes between them grew to gigabytes at full width.  Does nothing where the C library is not
    glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_MMAP_THRESHOLD, 1 << 20)


def desk_of(options: argparse.Namespace, half: str) -> ComparingSink:
    """A desk that compares; with ``--resume`` one that remembers."""
    if not options.resume:
        return ComparingSink(selection(options))
    key = {name: value for name, value in vars(options).items() if name not in ("report", "resume", "export")}
    return ComparingSink(selection(options), Progress(f"{options.resume}/{half}", key))


def halves(options: argparse.Namespace) -> list:
    """What is to be run: functions from a desk to rows."""
    pynative()
    config = load_config(options.config).model.model_config
    if options.only == "language" and config.text_config is None:
        raise ConfigError(f"{options.config} has no text_config, so there is no language model to compare")
    ckpt, vision_config = ckpt_of(options), config.vision_config
    for key, value in departures(config).values():
        say(f"note: {key} = {value} is this configuration's own, not LAVIS's: torch computes with it too")

    def vision(desk: ComparingSink) -> Iterator[Row]:
        with phase("weights and networks"):
            weights = Weights(config, options.weights, options.vit_path, ckpt, options.seed)
            if isinstance(weights.main, Stored) and weights.main.missing:
                say(
                    f"note: {ckpt} holds {len(weights.main.names)} parameters of stage 1; "
                    f"{len(weights.main.missing)} others, first "
                    f"{weights.main.missing[0]}, are random numbers"
                )
            images = pictures(options.batch, vision_config.image_size, vision_config.num_channels)
            stream = Stream(
                Window(weights, config, DTYPES[options.dtype]),
                images,
                captions(options.batch, config),
                options.blocks,
                desk,
            )
        with defective(stream.nets.ours, options.defect) if options.defect else nullcontext():
            yield from (row for rows in stream for row in rows)
        desk.fingerprints |= stream.window.fingerprints

    def language(desk: ComparingSink) -> Iterator[Row]:
        with phase("weights and networks of the language model"):
            from mindblip2.parity import (
                language_streaming,  # needs transformers, which takes seconds to import
            )

            state = (
                read_state_dict(options.llm_path)
                if options.llm_path
                else language_streaming.Seeded(config.text_config, seed=options.seed)
            )
            stored = Checkpoint(ckpt) if ckpt and not options.llm_path else ()
            if "llm.word.embedding_table" in stored:
                state = language_streaming.Stored(stored, config.text_config)
            elif stored:
                say(f"note: {ckpt} holds no language model: its weights are random numbers")
            stream = language_streaming.LanguageStream(
                config.text_config, state, options.blocks, desk, DTYPES[options.dtype]
            )
        yield from (row for rows in stream for row in rows)
        desk.fingerprints |= stream.fingerprints

    found = [vision] if options.only != "language" else []
    return found + ([language] if options.only != "vision" and config.text_config is not None else [])


def dump(options: argparse.Namespace) -> str:
    """Write the .npz; returns what to say."""
    with Writer(options.output) as writer:
        desk = WritingSink(writer, selection(options))
        for half in halves(options):
            writer.half = half.__name__
            for _ in half(desk):
                pass
        config = load_config(options.config).model.model_config
        writer.close(
            config=config.to_dict(),
            seed=options.seed,
            dtype=options.dtype,
            fingerprints=desk.fingerprints,
            weights=weights_of(options),
            stored=bool(options.ckpt and not options.weights),
            torch=torch.__version__,
        )
    return (
        f"{writer.path}: {len(writer.entries)} comparisons, {writer.path.stat().st_size / 2**20:,.1f} MB. On "
        "the other host: "
        f"python -m parity check {writer.path.name}"
        + (" --ckpt FILE" if options.weights or options.ckpt else "")
    )


def weights_of(options: argparse.Namespace) -> str:
    """Where the weights came from, in words."""
    return (
        options.weights or options.llm_path or options.ckpt or f"seeded random numbers, seed {options.seed}"
    )
