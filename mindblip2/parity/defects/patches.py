"""One thing of a network patched for a while: what a deliberate defect is made of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import mindspore as ms
import numpy as np
from mindspore import ops


@contextmanager
def replaced(owner, name: str, value) -> Iterator[None]:
    """An attribute of a module, class or cell replaced."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def changed(parameter: ms.Parameter, change: Callable[[np.ndarray], np.ndarray]) -> Iterator[None]:
    """A parameter with other values."""
    before = parameter.asnumpy().copy()
    parameter.set_data(ms.Tensor(np.ascontiguousarray(change(before))))
    try:
        yield
    finally:
        parameter.set_data(ms.Tensor(before))


@contextmanager
def exchanged(a: ms.Parameter, b: ms.Parameter) -> Iterator[None]:
    """Two parameters with each other's values."""
    values = a.asnumpy().copy(), b.asnumpy().copy()
    with changed(a, lambda _: values[1]), changed(b, lambda _: values[0]):
        yield


def eps(owners, names: tuple[str, ...], value: float) -> Iterator:
    """LayerNorms with another epsilon. The cells stay: one put in their place would rename the parameters it
    shares."""
    for owner in owners:
        for name in names:
            norm = getattr(owner, name, None)
            if norm is not None:
                yield replaced(norm, "eps", value)
                yield replaced(norm.normalise, "primitive", ops.LayerNorm(-1, -1, value))
