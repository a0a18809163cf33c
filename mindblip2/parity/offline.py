"""Compare MindSpore on this host with what torch gave on another (``dump`` in mindblip2/parity/run.py).
Neither torch nor transformers is needed.

A window of one ViT block, or one layer of a language model, slides over the depth here too, so full width
fits into little memory.
"""

import argparse
import re
import zlib
from collections.abc import Iterator
from contextlib import nullcontext

import mindspore as ms
import numpy as np

from mindblip2.checkpoint.pretrained import named_file
from mindblip2.config import Blip2Config
from mindblip2.config.schema import ConfigError, build
from mindblip2.models.blip2_qformer import Blip2Qformer
from mindblip2.parity.activation_hooks import capture, twin_paths
from mindblip2.parity.candidate.chained import FIRST, our_activations
from mindblip2.parity.candidate.language_model import kept, new_cell, one_layer
from mindblip2.parity.candidate.stage1 import OursGiven, ours_of
from mindblip2.parity.candidate.weights import Given, fill, fingerprints, from_file, seeded
from mindblip2.parity.compare import Row
from mindblip2.parity.defects.mutations import MUTATIONS, defective
from mindblip2.parity.defects.patches import replaced
from mindblip2.parity.dump_file import DumpError, DumpFile
from mindblip2.parity.model_triple import Case, judge, run_ours, tensor
from mindblip2.parity.report.msprobe import export
from mindblip2.parity.selection import Selection


class Check:
    """The rows of a dump's entries, in its order; afterwards ``fingerprints`` of all weights that were
    used."""

    def __init__(
        self,
        dump: DumpFile,
        given: Given,
        selection: Selection | None = None,
        dtype: str = "float32",
        defect: str | None = None,
    ):
        if defect and not tells(dump, defect):
            raise DumpError(
                f"{dump.path} holds no case that would tell {defect!r}: dump all cases, or draw it with the "
                "command run"
            )
        self.defect = defect
        self.dump, self.given, self.selection = dump, given, selection or Selection()
        self.config = config_of(dump).replace(compute_dtype=dtype)
        self.fingerprints: dict[str, int] = {}
        # ours and torch's of the chains, if somebody wants to keep them
        self.activations: list[tuple[dict, dict]] | None = None

    def __iter__(self) -> Iterator[list[Row]]:
        for half, window in (("vision", VisionWindow), ("language", LanguageWindow)):
            entries = [entry for entry in self.dump.entries if entry["half"] == half]
            if entries:
                shown = window(self.config, self.given)
                with (
                    defective(shown.model, self.defect) if self.defect and half == "vision" else nullcontext()
                ):
                    yield from self.rows(shown, entries)
                self.fingerprints |= shown.fingerprints

    def rows(self, window, entries: list[dict]) -> Iterator[list[Row]]:
        for entry in entries:
            if entry["kind"] != "case" and not self.selection.chained:
                continue
            inputs = self.dump.group(entry, "inputs")
            if entry["kind"] == "start":
                window.start(entry["name"], inputs)
                continue
            ours = self.ours(window, entry, inputs)
            if ours is not None:
                sides = self.agreeing(entry, ours)
                self.keep(entry, *sides[:2])
                found = judge(entry["name"], *sides)
                yield [row for row in found if entry["kind"] == "case" or self.selection.wants(row.name)]

    def ours(self, window, entry: dict, inputs: dict):
        """What our side gives, or None where nobody wants it. A chain goes on where a pattern leaves it out:
        later places need it."""
        if entry["kind"] == "chain":
            return window.advance(entry["name"])
        case = Case(
            entry["name"],
            None,
            ours_of(window.own_name(entry["name"])),
            inputs,
            tuple(entry["weights"]),
            entry["backward"],
            tuple(entry["fixed"]),
            tuple(entry["stacked"]),
            entry["values"],
        )
        wanted = self.selection.of(case)
        if wanted is None:
            return None
        with window.showing(entry["name"]):
            return run_ours(wanted, window.model)

    def keep(self, entry: dict, ours: dict, torch32: dict) -> None:
        """Remember a place of a chain by the path of its module."""
        if self.activations is not None and entry["kind"] == "chain":
            path = entry["name"].removeprefix("chained").strip()
            self.activations.append(
                tuple(
                    {f"{path} {name}".strip(): value for name, value in side.items()}
                    for side in (ours, torch32)
                )
            )

    def agreeing(self, entry: dict, ours: dict) -> tuple[dict, dict, dict]:
        """The three sides; of torch's only what was asked for now, which may be less than what was dumped."""
        torch32, truth = (self.dump.group(entry, group) for group in ("torch32", "truth"))
        wanted = set(ours) if self.selection.mode and entry["kind"] == "case" else set(truth)
        # a module that did not run
        silent = {key: np.full(truth[key].shape, np.nan, np.float32) for key in wanted - set(ours)}
        return ours | silent, *(
            {key: value for key, value in side.items() if key in wanted} for side in (torch32, truth)
        )


class VisionWindow:
    """Stage 1 with one ViT block."""

    def __init__(self, config: Blip2Config, given: Given):
        self.given, self.at, self.x = given, 0, None
        with ms.nn.utils.no_init_parameters():
            self.model = Blip2Qformer(config.replace(vision_config={"num_hidden_layers": 1}))
        fill(self.model, given)
        self.model.set_train(False)
        self.paths = twin_paths(self.model, config.qformer_config.cross_attention_freq)
        self.fingerprints = fingerprints(self.model)

    def own_name(self, name: str) -> str:
        """The name of the case here, where the only block has number 0."""
        return re.sub(r"^vit\.blocks\.\d+", FIRST, name)

    def showing(self, name: str):
        """The context in which the case called ``name`` runs: its block is in the window."""
        found = re.match(r"(?:chained )?vit\.blocks\.(\d+)", name)
        if found:
            self.slide(int(found[1]))
        elif not name.startswith(("vit", "chained vit")):
            self.without_vit()
        return nullcontext()

    def slide(self, i: int) -> None:
        if i != self.at:
            fill(self.model, self.given, "vit.blocks.0.", f"vit.blocks.{i}.")
            self.fingerprints |= fingerprints(self.model, "vit.blocks.0.", f"vit.blocks.{i}.")
            self.at = i

    def without_vit(self) -> None:
        """From here on pictures are what the dumping host's ViT made of them."""
        if not isinstance(self.model.vit, OursGiven):
            self.model.vit = OursGiven()
            self.paths = {ours: theirs for ours, theirs in self.paths.items() if not ours.startswith("vit")}

    def start(self, name: str, inputs: dict) -> None:
        """Keep what goes into a chain."""
        self.inputs = inputs
        if name == "chained vit.embed":
            with capture(self.model, [FIRST], inputs=True) as seen:
                self.model.vit(tensor(inputs["image"]))
            self.x = seen[FIRST][0]
        else:
            self.without_vit()

    def advance(self, name: str) -> dict[str, np.ndarray]:
        """What the chain gives at its next place."""
        if name == "chained":
            return our_activations(self.model, self.paths, self.inputs, whole=False)
        if name != "chained vit.embed":
            self.showing(name)
            self.x = self.model.vit.blocks[0](tensor(self.x)).asnumpy()
        return {"": self.x}


class LanguageWindow:
    """A language model of one layer and few words."""

    def __init__(self, config: Blip2Config, given: Given):
        self.config, self.at = config.text_config, 0
        self.words = (self.config.vocab_size, self.config.hidden_size)
        self.given = given
        self.model = new_cell(one_layer(self.config))
        fill(self.model, self.first_words)
        self.model.set_train(False)
        self.fingerprints = fingerprints(self.model)
        self.fingerprints.pop(self.head_name(), None)  # known when the whole table is read

    def head_name(self) -> str:
        """The parameter that the head is."""
        own = any(name == "llm.lm_head.weight" for name, _ in self.model.parameters_and_names())
        return "llm.lm_head.weight" if own else "llm.word.embedding_table"

    def first_words(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The parameter, of tables of words as many rows as the window has."""
        if name in ("llm.word.embedding_table", "llm.lm_head.weight"):
            return np.ascontiguousarray(self.given(name, self.words)[: shape[0]])
        return self.given(name, shape)

    def own_name(self, name: str) -> str:
        return re.sub(r" layers\.\d+", " layers.0", name)

    def showing(self, name: str):
        """Its layer is in the window, or, for the head, the whole table of words."""
        found = re.search(r" layers\.(\d+)", name)
        if found and int(found[1]) != self.at:
            self.at = int(found[1])
            fill(self.model, self.given, "llm.layers.0.", f"llm.layers.{self.at}.")
            self.fingerprints |= fingerprints(self.model, "llm.layers.0.", f"llm.layers.{self.at}.")
        if not name.endswith(" head"):
            return nullcontext()
        table = self.table()
        return replaced(self.model.llm, "head_weight", lambda: table)

    def table(self) -> ms.Parameter:
        """All words."""
        table = self.given(self.head_name(), self.words)
        self.fingerprints[self.head_name()] = zlib.crc32(np.ascontiguousarray(table).tobytes())
        return ms.Parameter(ms.Tensor(table), name="table")

    def start(self, name: str, inputs: dict) -> None:
        self.x, self.mask = inputs["x"], tensor(inputs["mask"])

    def advance(self, name: str) -> dict[str, np.ndarray]:
        self.showing(name)
        llm, x = self.model.llm, tensor(self.x)
        self.x = llm.layers[0](x, *llm.begin(x, self.mask)[1:])[0].asnumpy()
        return {"": kept(tensor(self.x), self.mask).asnumpy()}


def tells(dump: DumpFile, defect: str) -> bool:
    """Does the dump hold a case that a defect of stage 1 must make fail?"""
    caught = MUTATIONS[defect].caught.split(", ")
    wanted = Selection(tuple(caught))
    return any(
        wanted.wants(entry["name"])
        or entry["kind"] == "chain"
        and any(one.startswith(entry["name"]) for one in caught)
        for entry in dump.entries
    )


def config_of(dump: DumpFile) -> Blip2Config:
    """The configuration of the dump. Raises :class:`DumpError`."""
    try:
        return build(Blip2Config, dump.header["config"])
    except ConfigError as error:
        raise DumpError(
            f"{dump.path}: its configuration cannot be used ({error}). Dump again with this version of parity"
        ) from None


def differing(dumped: dict[str, int], used: dict[str, int]) -> str:
    """Which weights are not those of the dump, in words; nothing if all are."""
    other = [name for name, value in used.items() if dumped.get(name) != value]
    if not other:
        return ""
    named = ", ".join(other[:5]) + (", …" if len(other) > 5 else "")
    return f"{len(other)} of {len(used)} weights here are not those of the dump to the last bit: {named}"


def run(dump: DumpFile, options: argparse.Namespace, selection: Selection) -> tuple[list[Row], str]:
    """All rows, and what is to be said of the weights."""
    config = config_of(dump)
    given = drawn = seeded(config, dump.header["seed"])
    if options.ckpt:
        given = from_file(
            str(named_file(options.ckpt, "--ckpt")), drawn if dump.header.get("stored") else None
        )
    if not options.ckpt and not dump.header["weights"].startswith("seeded"):
        raise DumpError(
            f"{dump.path} was made of {dump.header['weights']}: give the converted file with --ckpt"
        )
    check = Check(dump, given, selection, options.dtype or dump.header["dtype"], options.defect)
    check.activations = [] if options.export else None
    found = [row for rows in check for row in rows]
    if options.export:
        ours, torch32 = (
            {name: value for place in check.activations for name, value in place[n].items()} for n in (0, 1)
        )
        export(options.export, ours, torch32, config.qformer_config.cross_attention_freq)
    return found, differing(dump.header["fingerprints"], check.fingerprints)
