"""Three networks of the same weights, and what a case gives on each: torch in float64 (the truth), torch in
float32 (the noise), ours in float32.

A case is one comparison: named inputs, the same function of the twin and of our model, and perhaps what to
differentiate by. Gradients are those of a random linear function of the outputs, so that every output counts
and none cancels. The torch side runs in mindblip2/parity/reference/outputs.py; nothing here needs torch.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import nn

from mindblip2.parity import seeded_weights
from mindblip2.parity.compare import Row, compare, compare_all

# a tensor of fewer elements has no noise statistics of its own: such tensors of one case are judged together
FEW = 32


class ModelTriple(NamedTuple):
    """The truth (float64), the noise (float32) and ours, all in eval mode."""

    truth: object  # a twin: of stage 1 or a language model's
    torch32: object
    ours: nn.Cell


@dataclass(frozen=True)
class Case:
    """``theirs(twin, **inputs)`` and ``ours(model, **inputs)`` give the same tensor, or tuple of tensors.

    With ``backward`` the gradients are compared too: by every floating-point input that is not ``fixed``, and
    by ``weights``, names of our parameters. Inputs that are ``stacked`` hold several problems along a first
    axis, which are run one after the other and compared together. ``values`` off: gradients only. ``local``:
    of no use to another host.
    """

    name: str
    theirs: Callable
    ours: Callable
    inputs: Mapping[str, np.ndarray] = field(repr=False)
    weights: tuple[str, ...] = ()
    backward: bool = False
    fixed: tuple[str, ...] = ()
    stacked: tuple[str, ...] = ()
    values: bool = True
    local: bool = False

    @property
    def differentiated(self) -> list[str]:
        """Names of the inputs whose gradients are compared."""
        return [
            name for name, value in self.inputs.items() if value.dtype.kind == "f" and name not in self.fixed
        ]

    def problems(self) -> list["Case"]:
        """The cases of which a stacked one is made."""
        count = len(self.inputs[self.stacked[0]])
        return [
            replace(
                self,
                stacked=(),
                inputs={
                    name: value[n] if name in self.stacked else value for name, value in self.inputs.items()
                },
            )
            for n in range(count)
        ]


def pynative() -> None:
    """Run our side eagerly and, on a CPU, without the threads of asynchronous launch, which spin: they cost
    ten times the time of operators as small as these."""
    ms.set_context(mode=ms.PYNATIVE_MODE)
    ms.runtime.launch_blocking()


def judge(name: str, ours: Mapping, torch32: Mapping, truth: Mapping) -> list[Row]:
    """A row for each tensor, and one for all tensors of few elements together."""
    few = [key for key, value in truth.items() if value.size < FEW]
    large = [{key: value for key, value in side.items() if key not in few} for side in (ours, torch32, truth)]
    found = compare_all(*({f"{name} {key}".strip(): value for key, value in side.items()} for side in large))
    if few:
        scales = {key: 2.0 ** -np.frexp(np.abs(truth[key]).max() or 1.0)[1] for key in few}
        bundles = [
            np.concatenate([np.ravel(side[key]) * side[key].dtype.type(scales[key]) for key in few])
            for side in (ours, torch32, truth)
        ]
        found.append(compare(f"{name} {' '.join(few)}".strip(), *bundles))
    return found


def cotangent(case: Case, index: int, shape: tuple[int, ...]) -> np.ndarray:
    """The random weights of an output in the function whose gradients are compared."""
    return seeded_weights.normal(1, f"{case.name} {index}", shape)


def run_ours(case: Case, model: nn.Cell) -> dict[str, np.ndarray]:
    """The case's outputs and gradients on our model."""
    if case.stacked:
        return together(run_ours(problem, model) for problem in case.problems())
    inputs = [tensor(value) for value in case.inputs.values()]
    if not case.backward:
        found = several(case.ours(model, **dict(zip(case.inputs, inputs, strict=True))))
        return named([value.asnumpy() for value in found])
    parameters = dict(model.parameters_and_names())
    weights = [parameters[name] for name in case.weights]

    def total(*values):
        found = several(case.ours(model, **dict(zip(case.inputs, values, strict=True))))
        return sum(
            (value * tensor(cotangent(case, i, value.shape))).sum() for i, value in enumerate(found)
        ), found

    position = tuple(i for i, name in enumerate(case.inputs) if name in case.differentiated)
    with trained(parameters.values(), weights):
        (_, found), grads = ms.value_and_grad(total, position or None, weights or None, has_aux=True)(*inputs)
    return named([value.asnumpy() for value in found], case, [grad.asnumpy() for grad in flattened(grads)])


def named(
    found: list[np.ndarray], case: Case | None = None, grads: list[np.ndarray] = ()
) -> dict[str, np.ndarray]:
    """Outputs under their numbers (the first one under no name), gradients under ``d`` and what they are
    taken by."""
    names = [f"d {name}" for name in (*case.differentiated, *case.weights)] if case else []
    values = {} if case and not case.values else {str(i or ""): value for i, value in enumerate(found)}
    return values | dict(zip(names, grads, strict=True))


def together(results: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The results of several problems: values and gradients of few elements along a new first axis, the
    others added up. An error in one loss scales the whole gradient of a problem, so that one problem is only
    one draw of the noise."""
    found: dict[str, list[np.ndarray]] = {}
    for result in results:
        for key, value in result.items():
            if key in found and summed(key, value):
                found[key][0] += value
            else:
                found.setdefault(key, []).append(value.copy())
        result.clear()  # before the next one is made
    return {key: values[0] if summed(key, values[0]) else np.stack(values) for key, values in found.items()}


def summed(key: str, value: np.ndarray) -> bool:
    """Is this the gradient of many elements?"""
    return key.startswith("d ") and value.size >= FEW


def several(value) -> tuple:
    """A tuple, of one tensor if there is one."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def flattened(grads) -> list:
    """MindSpore nests gradients by kind, unless there is only one."""
    return [x for grad in grads for x in flattened(grad)] if isinstance(grads, tuple | list) else [grads]


def tensor(value: np.ndarray) -> ms.Tensor:
    """A MindSpore tensor; ids are int32 there."""
    return ms.Tensor(value.astype(np.float32 if value.dtype.kind == "f" else np.int32))


@contextmanager
def trained(parameters: Iterable, weights: Iterable) -> Iterator[None]:
    """Gradients for ``weights``, also of the frozen ViT, and for no other of the ``parameters``, which would
    be made and thrown away."""
    before, wanted = [(one, one.requires_grad) for one in parameters], set(map(id, weights))
    try:
        for one, _ in before:
            one.requires_grad = id(one) in wanted
        yield
    finally:
        for one, flag in before:
            one.requires_grad = flag
