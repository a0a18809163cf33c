"""A language model at full width in little memory: a window of one layer slides over the whole depth.

As mindblip2/parity/streaming.py does with the ViT: three networks of one layer are built once (Llama-7B: 3.2
GB); for each layer its weights are loaded into the window, and it is compared on the truth's input
("isolated") and on each network's own ("chained"). Then come the final norm and the head, on the whole
vocabulary.

    # B batch · T positions · D width · V vocabulary
"""

import dataclasses
import zlib
from collections.abc import Iterator, Mapping

import mindspore as ms
import numpy as np
import torch

from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError
from mindblip2.config import LlamaConfig, OPTConfig
from mindblip2.convert.name_maps.blip2 import source_name
from mindblip2.parity import seeded_weights
from mindblip2.parity.candidate.language_model import is_baichuan, new_cell, one_layer
from mindblip2.parity.candidate.stage1 import ours_of
from mindblip2.parity.candidate.weights import fingerprints, language_source
from mindblip2.parity.cases.language_model import (
    FULL,
    HOLE,
    LEFT,
    RIGHT,
    fill,
    filled,
    language_conversion,
    layer_cases,
    masks,
    norm_case,
    recorded,
)
from mindblip2.parity.compare import Row
from mindblip2.parity.defects.patches import replaced
from mindblip2.parity.model_triple import Case, ModelTriple, tensor
from mindblip2.parity.reference.language_model import LanguageTwin
from mindblip2.parity.reference.outputs import numbers
from mindblip2.parity.result_sinks import ComparingSink
from mindblip2.progress import progress

WINDOW = ".layers.0."
TABLES = ("embed_tokens.weight", "lm_head.weight")  # of which the window has the first rows


class Seeded(Mapping):
    """A checkpoint of random numbers that are drawn when they are asked for; it holds what a model of
    ``config`` has, or a Llama with Baichuan's names (``packed``)."""

    def __init__(
        self, config: LlamaConfig | OPTConfig, packed: bool = False, seed: int = seeded_weights.SEED
    ):
        with torch.device("meta"):
            self.meta = dict(LanguageTwin(config, packed or is_baichuan(config)).llm.named_parameters())
        self.seed = seed

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(seeded_weights.weight(name, tuple(self.meta[name].shape), self.seed))

    def __iter__(self):
        return iter(self.meta)

    def __len__(self):
        return len(self.meta)


class Stored(Mapping):
    """The language model in a .ckpt of ours, under the names of transformers or, where its configuration is
    Baichuan's, under Baichuan's."""

    def __init__(self, stored: Checkpoint, config: LlamaConfig | OPTConfig):
        self.stored, self.groups = stored, {}
        for name in stored:
            if name.startswith("llm."):
                self.groups.setdefault(source_name(language_source(config), name), []).append(name)

    def __getitem__(self, name: str) -> torch.Tensor:
        parts = self.groups[name]
        if parts[1:]:  # Baichuan's W_pack
            parts = sorted(parts, key=lambda ours: ("query", "key", "value").index(ours.split(".")[-2]))
        return torch.cat([torch.from_numpy(self.stored.float32(ours)) for ours in parts])

    def __iter__(self):
        return iter(self.groups)

    def __len__(self):
        return len(self.groups)


class LanguageStream:
    """The rows of all cases, case by case, of a model whose weights are ``state``: transformers' (or
    Baichuan's) names → tensors."""

    def __init__(
        self,
        config: LlamaConfig | OPTConfig,
        state: Mapping,
        layers: int | None = None,
        desk: ComparingSink | None = None,
        noise: torch.dtype = torch.float32,
    ):
        self.config, self.state, self.layers = (
            config,
            state,
            min(layers or config.num_layers, config.num_layers),
        )
        packed = any("W_pack" in name for name in state)
        small, self.desk = one_layer(config), desk or ComparingSink()
        # the tiny model of its kind
        self.relative = (
            "opt"
            if isinstance(config, OPTConfig)
            else "llama"
            if not packed
            else "baichuan_13b"
            if config.position_embedding == "alibi"
            else "baichuan2_7b"
        )
        self.twins = [LanguageTwin(small, packed).eval() for _ in range(2)]
        self.load_both(0)
        self.twins[0].double()
        self.nets = ModelTriple(*self.twins, filled(new_cell(small), self.twins[1], small).set_train(False))
        self.small, self.name, self.noise = small, "opt" if self.twins[0].opt else "llama", noise
        self.fingerprints = fingerprints(self.nets.ours)
        self.twins[1].to(noise)

    @torch.no_grad()
    def load_both(self, i: int) -> None:
        """Give the twins layer ``i``, and all that belongs to no layer; of tables their first rows."""
        other = dict(self.twins[0].llm.named_parameters())
        for name, parameter in self.twins[1].llm.named_parameters():
            if i == 0 or WINDOW in name:
                value = self.weight(name.replace(WINDOW, f".layers.{i}."))
                value = value[: len(parameter)] if name.endswith(TABLES) else value
                if value.shape != parameter.shape:
                    raise CheckpointError(
                        f"{name} has {tuple(value.shape)}, but text_config asks for "
                        f"{tuple(parameter.shape)}: give the "
                        "--config that belongs to the weights"
                    )
                for one in (parameter, other[name]):
                    one.copy_(value)

    def weight(self, name: str) -> torch.Tensor:
        """A tensor of the file, float32."""
        if name not in self.state:
            raise CheckpointError(
                f"{name} is not among the weights: parity reads a language model under the names of "
                "transformers, "
                f"of the sizes of text_config ({self.config.num_layers} layers)"
            )
        return self.state[name].float()

    def __iter__(self) -> Iterator[list[Row]]:
        truth, mask_BT = self.nets.truth, masks(FULL, RIGHT, LEFT, LEFT if self.nets.truth.alibi else HOLE)
        x_BTD = torch.from_numpy(
            seeded_weights.normal(7, "prompt", (*mask_BT.shape, self.config.hidden_size))
        )
        if truth.opt:
            x_BTD += truth.stack.embed_positions(torch.from_numpy(mask_BT)).detach().float()
        done, stored = self.desk.chain()
        sides = (
            [*map(torch.from_numpy, stored[:2]), stored[2]]
            if done
            else [x_BTD.double(), x_BTD.to(self.noise), x_BTD.numpy()]
        )
        self.desk.start(f"chained {self.name}", {"x": x_BTD.numpy(), "mask": mask_BT})
        for i in progress(range(self.layers), desc="LLM", unit="layer"):
            if i >= done:
                yield from self.layer_rows(i, sides, mask_BT)
                self.desk.leave(i + 1, *map(numbers, sides[:2]), sides[2])
            else:
                yield self.desk.stored(f"{self.name} layers.{i}")
        yield self.desk.case(norm_case(self.name, "norm", sides[0].float().numpy(), nothing), self.nets)
        self.free_layers()
        yield self.head_row(truth.norm("norm", sides[0]).detach())
        yield self.desk.case(language_conversion(self.name, self.relative), self.nets)

    def slide(self, i: int) -> None:
        """Show layer ``i``."""
        self.twins[1].float()  # our side takes its weights from there
        self.load_both(i)
        fill(self.nets.ours, self.twins[1], self.small, "llm.layers.0.")
        self.fingerprints |= fingerprints(self.nets.ours, "llm.layers.0.", f"llm.layers.{i}.")
        self.twins[1].to(self.noise)

    def free_layers(self) -> None:
        """Make room for the table of all words."""
        for twin in self.twins:
            del twin.stack.layers[:]
        self.nets.ours.llm.layers = ms.nn.CellList()

    def layer_rows(self, i: int, sides: list, mask_BT: np.ndarray) -> Iterator[list[Row]]:
        """The layer that the window shows; of the first and the last also its parts. With the gradient by the
        input."""
        if i:
            self.slide(i)
        inputs = recorded(self.nets.truth, sides[0].float().double(), mask_BT, layer=0)
        for case in layer_cases(self.name, 0, inputs, mask_BT, nothing):
            if i in (0, self.layers - 1) or case.name.endswith("layers.0"):
                yield self.desk.case(
                    dataclasses.replace(case, name=case.name.replace("layers.0", f"layers.{i}")), self.nets
                )
        self.advance(sides, mask_BT)
        yield self.chained_row(f"layers.{i}", sides, mask_BT)

    def chained_row(self, name: str, sides: list, mask_BT: np.ndarray) -> list[Row]:
        """The three chains compared where they are now."""
        truth, torch32, ours = ({"": masked(side, mask_BT)} for side in (*map(numbers, sides[:2]), sides[2]))
        return self.desk.chained(f"chained {self.name} {name}", ours, torch32, truth)

    @torch.no_grad()
    def advance(self, sides: list, mask_BT: np.ndarray) -> None:
        """Each side's own output through the layer that the window shows."""
        for n, twin in enumerate(self.twins):
            sides[n] = twin.layer(0, sides[n], torch.from_numpy(mask_BT))
        llm, mask = self.nets.ours.llm, tensor(mask_BT)
        sides[2] = llm.layers[0](tensor(sides[2]), *llm.begin(tensor(sides[2]), mask)[1:])[0].asnumpy()

    def head_row(self, x_BTD: torch.Tensor) -> list[Row]:
        """All words of a few places."""
        x = x_BTD[:, -2:].float()
        theirs = source_name(
            self.twins[0].source, "llm.word.embedding_table" if self.twins[0].opt else "llm.lm_head.weight"
        )
        table = self.weight(theirs)
        head, given = self.twins[0].llm.lm_head, ms.Parameter(ms.Tensor(table.numpy()), name="table")
        case = Case(
            f"{self.name} head",
            lambda twin, x: torch.func.functional_call(head, {"weight": table.to(x.dtype)}, (x,)),
            ours_of(f"{self.name} head"),
            {"x": x.numpy()},
            backward=True,
        )
        self.fingerprints["llm.word.embedding_table" if self.twins[0].opt else "llm.lm_head.weight"] = (
            zlib.crc32(table.numpy().tobytes())
        )
        with replaced(self.nets.ours.llm, "head_weight", lambda: given):
            return self.desk.case(case, self.nets)


def nothing(path: str) -> tuple[str, ...]:
    """No weights: at full width their gradients take the memory of a second model."""
    return ()


def masked(side, mask_BT: np.ndarray) -> np.ndarray:
    """What stands at tokens."""
    return np.asarray(side) * mask_BT[..., None].astype(np.float32)
