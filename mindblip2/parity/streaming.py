"""Parity at full width in little memory: a window of one ViT block slides over the whole depth.

Three networks of full width and one ViT block are built once (about 3 GB); for each block its weights are
loaded into the window. "Isolated": each block gets the truth's input. "Chained": each network's own output
goes on to the next block. The Q-Former is compared whole, on the truth's image embeddings.

    # B batch · N captions per picture · P patches + cls · W image width · T text
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from mindblip2.config import Blip2Config
from mindblip2.parity.activation_hooks import capture, twin_paths
from mindblip2.parity.candidate.chained import batch
from mindblip2.parity.candidate.stage1 import OursGiven
from mindblip2.parity.candidate.weights import fill, fingerprints
from mindblip2.parity.cases.chained import chained, stage1_cases
from mindblip2.parity.cases.conversion import stage1_conversion
from mindblip2.parity.cases.losses import loss_cases
from mindblip2.parity.cases.preprocessing import preprocessing_cases
from mindblip2.parity.cases.stage1 import (
    block_case,
    fused_cases,
    ln_vision_case,
    module_cases,
    patch_case,
    qformer_cases,
    recorded,
    vit_case,
)
from mindblip2.parity.compare import Row
from mindblip2.parity.model_triple import ModelTriple, tensor
from mindblip2.parity.reference.outputs import numbers
from mindblip2.parity.report.timing import phase
from mindblip2.parity.result_sinks import ComparingSink
from mindblip2.parity.weights import VIT, Weights, make_nets
from mindblip2.progress import progress

# of the gradients of all parameters, at full width: as many at once as fit into memory with the networks
PARTS = 6
# bytes of gradients that are taken at once: each part costs the forward passes of all three networks again
SMALL = 256 * 2**20


class Window:
    """Three networks of one ViT block, and which block of the whole it shows."""

    def __init__(self, weights: Weights, config: Blip2Config, noise: torch.dtype = torch.float32):
        self.weights, self.depth = weights, config.vision_config.num_hidden_layers
        self.nets = make_nets(weights, config.replace(vision_config={"num_hidden_layers": 1}), noise)
        self.fingerprints = fingerprints(self.nets.ours)  # of every weight that was shown

    def slide(self, i: int) -> None:
        """Show block ``i``."""
        fill(self.nets.ours, self.weights.given, "vit.blocks.0.", f"vit.blocks.{i}.")
        self.fingerprints |= fingerprints(self.nets.ours, "vit.blocks.0.", f"vit.blocks.{i}.")
        for twin in self.nets[:2]:
            block = twin.visual_encoder.blocks[0]
            block.load_state_dict(
                {name: self.weights.theirs(f"{VIT}blocks.{i}.{name}") for name in block.state_dict()}
            )


class Stream:
    """The rows of all cases, case by case, of pictures (B, 3, S, S) with N captions each (N, B, T); ``sink``
    decides what becomes of each (mindblip2/parity/result_sinks.py)."""

    def __init__(
        self,
        window: Window,
        image: np.ndarray,
        ids_NBT: np.ndarray,
        blocks: int | None = None,
        sink: ComparingSink | None = None,
    ):
        self.window, self.nets, self.image, self.ids_NBT, self.sink = (
            window,
            window.nets,
            image,
            ids_NBT,
            sink or ComparingSink(),
        )
        self.blocks = min(blocks or window.depth, window.depth)
        self.paths = twin_paths(self.nets.ours, self.nets.truth.config.cross_attention_freq)
        self.truth_BPW = self.torch32_BPW = self.ours_BPW = None  # what goes into the next block of the chain

    def __iter__(self) -> Iterator[list[Row]]:
        with phase(f"ViT, {self.blocks} blocks"):
            yield from self.vit_rows()
        with phase("Q-Former and losses"):
            yield from self.qformer_rows()

    def vit_rows(self) -> Iterator[list[Row]]:
        """Patches, then block by block."""
        for case in (patch_case(self.nets.ours, self.image), vit_case(self.nets.ours, self.image)):
            yield self.sink.case(case, self.nets)
        done, sides = self.sink.chain()
        if done:
            self.truth_BPW, self.torch32_BPW, self.ours_BPW = (
                torch.from_numpy(sides[0]),
                torch.from_numpy(sides[1]),
                sides[2],
            )
        else:
            self.embed()
        self.sink.start("chained vit.embed", {"image": self.image})
        yield self.chained_row("vit.embed")
        for i in progress(range(self.blocks), desc="ViT", unit="block"):
            if i >= done:
                yield from self.block_rows(i)
                self.sink.leave(i + 1, *self.sides())
            else:
                yield self.sink.stored(f"vit.blocks.{i}")

    def block_rows(self, i: int) -> Iterator[list[Row]]:
        """One block, which the window shows: alone, its parts, in the chain."""
        if i:
            self.window.slide(i)
        x_BPW = self.truth_BPW.float().numpy()
        yield self.sink.case(block_case(self.nets.ours, 0, x_BPW, backward=i == 0, label=i), self.nets)
        if i in (0, self.blocks - 1):
            yield from self.inside_rows(i, x_BPW)
        self.advance()
        yield self.chained_row(f"vit.blocks.{i}")

    @torch.no_grad()
    def embed(self) -> None:
        """What goes into the first block, on each side."""
        embedded = []
        for twin in self.nets[:2]:
            handle = twin.visual_encoder.blocks[0].register_forward_pre_hook(
                lambda _, args: embedded.append(args[0])
            )
            twin.vit(torch.from_numpy(self.image).to(twin.query_tokens.dtype))
            handle.remove()
        self.truth_BPW, self.torch32_BPW = embedded
        with capture(self.nets.ours, ["vit.blocks.0"], inputs=True) as seen:
            self.nets.ours.vit(tensor(self.image))
        self.ours_BPW = seen["vit.blocks.0"][0]

    @torch.no_grad()
    def advance(self) -> None:
        """Each side's own output through the block that the window shows."""
        truth, torch32, ours = self.nets
        self.truth_BPW = truth.visual_encoder.blocks[0](self.truth_BPW)
        self.torch32_BPW = torch32.visual_encoder.blocks[0](self.torch32_BPW)
        self.ours_BPW = ours.vit.blocks[0](tensor(self.ours_BPW)).asnumpy()

    def sides(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Truth, torch32 and ours, where the chains are now."""
        return numbers(self.truth_BPW), numbers(self.torch32_BPW), self.ours_BPW

    def chained_row(self, name: str) -> list[Row]:
        """The three chains compared where they are now."""
        truth, torch32, ours = self.sides()
        return self.sink.chained(f"chained {name}", {"": ours}, {"": torch32}, {"": truth})

    def inside_rows(self, i: int, x_BPW: np.ndarray) -> Iterator[list[Row]]:
        """Norms, attention and feed-forward of the block that the window shows."""
        truth = self.nets.truth
        paths = {ours: theirs for ours, theirs in self.paths.items() if ours.startswith("vit.blocks.0.")}
        inputs = recorded(
            truth, paths, lambda: truth.visual_encoder.blocks[0](torch.from_numpy(x_BPW).double())
        )
        for case in module_cases(paths, inputs):
            yield self.sink.case(
                dataclasses.replace(case, name=case.name.replace("blocks.0", f"blocks.{i}")), self.nets
            )

    def qformer_rows(self) -> Iterator[list[Row]]:
        """Everything behind the ViT: each part, then a forward pass and the gradients of the losses."""
        model, truth = self.nets.ours, self.nets.truth
        x_BPW, ids_BT = self.truth_BPW.float().numpy(), self.ids_NBT[0]
        with torch.no_grad():
            image_BPW = truth.ln_vision(self.truth_BPW).float().numpy()
        image = without_vit(self.nets, x_BPW)
        parts = 1 if sum(one.nbytes for one in model.trainable_params()) <= SMALL else PARTS
        cases = [
            ln_vision_case(model, x_BPW),
            *qformer_cases(model, truth, image_BPW, ids_BT),
            *fused_cases(),
            *loss_cases(),
            *preprocessing_cases(),
            stage1_conversion(),
            *stage1_cases(model, image, self.ids_NBT, parts=parts),
        ]
        for case in progress(cases, desc="Q-Former", unit="case"):
            yield self.sink.case(case, self.nets)
        inputs = batch(image, ids_BT)
        if self.sink.selection.chained:
            self.sink.start("chained", inputs)
            yield self.sink.chained("chained", *chained(self.nets, inputs))


class TheirsGiven(torch.nn.Module):
    """Stands for a ViT whose output is there already, in a twin: (B, 1, P, W) -> (B, P, W)."""

    def forward(self, x_B1PW):
        return x_B1PW[:, 0]


def without_vit(nets: ModelTriple, x_BPW: np.ndarray) -> np.ndarray:
    """Free the window, and make the ViT's output (B, P, W) what the networks take for a picture."""
    nets.ours.vit = OursGiven()
    for twin in nets[:2]:
        twin.visual_encoder = TheirsGiven()
    return x_BPW[:, None]
