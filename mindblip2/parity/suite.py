"""All cases on networks that fit into memory whole: chained, isolated, and the gradients of the total loss.

What torch gives is computed once, so that our side can run again and again, as it is and with each defect.
"""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

import numpy as np
import torch

from mindblip2.parity.activation_hooks import twin_paths
from mindblip2.parity.candidate.chained import our_activations
from mindblip2.parity.cases.chained import stage1_cases, their_activations
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
from mindblip2.parity.model_triple import Case, ModelTriple, judge, run_ours
from mindblip2.parity.reference.outputs import run_theirs

CHAINED = "chained "  # begins the names of chained rows


class Suite:
    """The cases of three networks on one batch (see ``mindblip2.parity.cases.chained.batch``)."""

    def __init__(self, nets: ModelTriple, inputs: Mapping[str, np.ndarray]):
        self.nets, self.inputs = nets, inputs
        self.paths = twin_paths(nets.ours, nets.truth.config.cross_attention_freq)

    @cached_property
    def cases(self) -> list[Case]:
        """The isolated cases, in the order of the network."""
        found = [
            *self.vit_cases(),
            *qformer_cases(self.nets.ours, self.nets.truth, self.image_BPW, self.inputs["ids"]),
            *fused_cases(),
            *loss_cases(),
            *preprocessing_cases(),
            stage1_conversion(),
            *self.stage1_cases(),
        ]
        names = [case.name for case in found]
        if len(set(names)) != len(names):
            raise ValueError(
                f"cases share names: {sorted(name for name in set(names) if names.count(name) > 1)}"
            )
        return found

    def stage1_cases(self) -> Iterator[Case]:
        """Each picture with its own caption, then with those of the others, in both orders."""
        ids = [
            np.roll(order, n, axis=0)
            for order in (self.inputs["ids"], self.inputs["ids"][::-1])
            for n in range(len(order))
        ]
        return stage1_cases(self.nets.ours, self.inputs["image"], np.stack(ids))

    @cached_property
    @torch.no_grad()
    def image_BPW(self) -> np.ndarray:
        """The truth's image embeddings, in float32."""
        return self.nets.truth.embed_image(torch.from_numpy(self.inputs["image"]).double()).float().numpy()

    def vit_cases(self) -> Iterator[Case]:
        """Patches, blocks and what is in them, on the truth's input."""
        model, twin, image = self.nets.ours, self.nets.truth, self.inputs["image"]
        paths = {ours: theirs for ours, theirs in self.paths.items() if ours.startswith(("vit", "ln_vision"))}
        inputs = recorded(twin, paths, lambda: twin.embed_image(torch.from_numpy(image).double()))
        yield patch_case(model, image)
        yield vit_case(model, image)
        for i in range(twin.config.vit_depth):
            yield block_case(model, i, inputs[f"vit.blocks.{i}"][0])
        yield ln_vision_case(model, inputs.pop("ln_vision")[0])
        yield from module_cases(paths, inputs)

    @cached_property
    def expected(self) -> dict[str, tuple[dict, dict]]:
        """Case name -> what torch gives in float32 and in float64; the chained run under its own name."""
        sides = self.nets.torch32, self.nets.truth
        found = {CHAINED: tuple(their_activations(twin, self.paths, self.inputs) for twin in sides)}
        return found | {case.name: tuple(run_theirs(case, twin) for twin in sides) for case in self.cases}

    @property
    def names(self) -> list[str]:
        """All cases: the rows of the chained run, then the isolated cases."""
        return [CHAINED + name for name in self.expected[CHAINED][1]] + [case.name for case in self.cases]

    def matching(self, patterns: str) -> list[str]:
        """The cases that patterns as in a shell, separated by commas, mean; each must mean one."""
        found = {pattern: fnmatch.filter(self.names, pattern) for pattern in patterns.split(", ")}
        if not all(found.values()):
            raise ValueError(
                f"no case is called {[pattern for pattern, names in found.items() if not names]}"
            )
        return sorted(set().union(*found.values()))

    def rows(self, names: Iterable[str] | None = None) -> dict[str, list[Row]]:
        """Case name -> rows, of some cases or all."""
        wanted = set(self.names if names is None else names)
        found = self.chained() if any(name.startswith(CHAINED) for name in wanted) else {}
        found |= {
            case.name: judge(case.name, run_ours(case, self.nets.ours), *self.expected[case.name])
            for case in self.cases
            if case.name in wanted
        }
        return {name: rows for name, rows in found.items() if name in wanted}

    def chained(self) -> dict[str, list[Row]]:
        """The rows of one forward pass, each under its own name."""
        ours = our_activations(self.nets.ours, self.paths, self.inputs)
        torch32, truth = self.expected[CHAINED]
        return {
            CHAINED + name: judge(CHAINED + name, {"": ours[name]}, {"": torch32[name]}, {"": truth[name]})
            for name in truth
        }
