"""Parity at full width in little memory: a window of one ViT block slides over the whole depth.

Three networks of full width and one ViT block are built once (about 3 GB); for each block its weights are loaded into
the window. "Isolated": each block gets the truth's input. "Chained": each network's own output goes on to the next
block. The Q-Former is compared whole, on the truth's image embeddings.

    # B batch · N captions per picture · P patches + cls · W image width · T text
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from mindspore import nn
from tqdm import tqdm

from mindblip2.config import Blip2Config
from parity.capture import capture, twin_paths
from parity.cases import (
    block_case,
    fused_cases,
    ln_vision_case,
    module_cases,
    patch_case,
    qformer_cases,
    recorded,
    vit_case,
)
from parity.chained import batch, chained, stage1_cases
from parity.compare import Row
from parity.loss_cases import loss_cases
from parity.nets import Nets, judge, rows, tensor
from parity.weights import VIT, Weights, fill, make_nets


class Window:
    """Three networks of one ViT block, and which block of the whole it shows."""

    def __init__(self, weights: Weights, config: Blip2Config):
        self.weights, self.depth = weights, config.vision_config.num_hidden_layers
        self.nets = make_nets(weights, config.replace(vision_config={"num_hidden_layers": 1}))

    def slide(self, i: int) -> None:
        """Show block ``i``."""
        fill(self.nets.ours, self.weights, "vit.blocks.0.", f"vit.blocks.{i}.")
        for twin in self.nets[:2]:
            block = twin.visual_encoder.blocks[0]
            block.load_state_dict({name: self.weights.theirs(f"{VIT}blocks.{i}.{name}") for name in block.state_dict()})


class Stream:
    """The rows of all cases, case by case, of pictures (B, 3, S, S) with N captions each (N, B, T)."""

    def __init__(self, window: Window, image: np.ndarray, ids_NBT: np.ndarray, blocks: int | None = None):
        self.window, self.nets, self.image, self.ids_NBT = window, window.nets, image, ids_NBT
        self.blocks = min(blocks or window.depth, window.depth)
        self.paths = twin_paths(self.nets.ours, self.nets.truth.config.cross_attention_freq)
        self.truth_BPW = self.torch32_BPW = self.ours_BPW = None  # what goes into the next block of the chain

    def __iter__(self) -> Iterator[list[Row]]:
        yield from self.vit_rows()
        yield from self.qformer_rows()

    def vit_rows(self) -> Iterator[list[Row]]:
        """Patches, then block by block."""
        for case in (patch_case(self.nets.ours, self.image), vit_case(self.nets.ours, self.image)):
            yield rows(case, self.nets)
        self.embed()
        yield self.chained_row("vit.embed")
        for i in tqdm(range(self.blocks), desc="ViT", unit="block", disable=None):
            if i:
                self.window.slide(i)
            x_BPW = self.truth_BPW.float().numpy()
            yield rows(block_case(self.nets.ours, 0, x_BPW, backward=i == 0, label=i), self.nets)
            if i in (0, self.blocks - 1):
                yield from self.inside_rows(i, x_BPW)
            self.advance()
            yield self.chained_row(f"vit.blocks.{i}")

    @torch.no_grad()
    def embed(self) -> None:
        """What goes into the first block, on each side."""
        embedded = []
        for twin in self.nets[:2]:
            handle = twin.visual_encoder.blocks[0].register_forward_pre_hook(lambda _, args: embedded.append(args[0]))
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

    def chained_row(self, name: str) -> list[Row]:
        """The three chains compared where they are now."""
        sides = self.ours_BPW, self.torch32_BPW.numpy(), self.truth_BPW.numpy()
        return judge(f"chained {name}", *({"": side} for side in sides))

    def inside_rows(self, i: int, x_BPW: np.ndarray) -> Iterator[list[Row]]:
        """Norms, attention and feed-forward of the block that the window shows."""
        truth = self.nets.truth
        paths = {ours: theirs for ours, theirs in self.paths.items() if ours.startswith("vit.blocks.0.")}
        inputs = recorded(truth, paths, lambda: truth.visual_encoder.blocks[0](torch.from_numpy(x_BPW).double()))
        for case in module_cases(paths, inputs):
            yield rows(dataclasses.replace(case, name=case.name.replace("blocks.0", f"blocks.{i}")), self.nets)

    def qformer_rows(self) -> Iterator[list[Row]]:
        """Everything behind the ViT: each part, then a forward pass and the gradients of the losses."""
        model, truth = self.nets.ours, self.nets.truth
        x_BPW, ids_BT = self.truth_BPW.float().numpy(), self.ids_NBT[0]
        with torch.no_grad():
            image_BPW = truth.ln_vision(self.truth_BPW).float().numpy()
        image = without_vit(self.nets, x_BPW)
        cases = [ln_vision_case(model, x_BPW), *qformer_cases(model, truth, image_BPW, ids_BT), *fused_cases(), *loss_cases(),
                 *stage1_cases(model, image, self.ids_NBT, parts=3)]
        for case in tqdm(cases, desc="Q-Former", unit="case", disable=None):
            yield rows(case, self.nets)
        ours, torch32, truth = chained(self.nets, batch(image, ids_BT))
        yield judge("chained", ours, torch32, truth)


class OursGiven(nn.Cell):
    """Stands for a ViT whose output is there already: (B, 1, P, W) -> (B, P, W)."""

    def construct(self, x_B1PW):
        return x_B1PW[:, 0]


class TheirsGiven(torch.nn.Module):
    """The same for a twin."""

    def forward(self, x_B1PW):
        return x_B1PW[:, 0]


def without_vit(nets: Nets, x_BPW: np.ndarray) -> np.ndarray:
    """Free the window, and make the ViT's output (B, P, W) what the networks take for a picture."""
    nets.ours.vit = OursGiven()
    for twin in nets[:2]:
        twin.visual_encoder = TheirsGiven()
    return x_BPW[:, None]
