"""Random numbers as a function of a key: what dropout, drop path and the choice of negatives draw.

MindSpore's CPU kernels keep the state of their random numbers to themselves, so a run could neither be
resumed bit for bit nor repeated in the other mode.  On a CPU a draw here is a function of the model's key,
the place of the draw and the shape: multiply-shift hashing (Dietzfelbinger et al. 1997) of a table of random
words.  A training loop sets the key at every step; otherwise it moves on by itself.  Other devices draw with
MindSpore's own operators.

R rows of the table's width · B batch
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops

from mindblip2 import device
from mindblip2.distributed import comm

WIDTH = 1 << 16
TABLE = Tensor(np.random.default_rng(0).integers(0, 2**32, WIDTH, dtype=np.uint32))
ODD, STEP = Tensor(0x2C1B3C6D, ms.uint32), Tensor(0x297A2D39, ms.uint32)
ONE, TWO, LOW = (Tensor(n, ms.uint32) for n in (1, 2, 8))  # float32 holds 24 of 32 bits


class RngState:
    """Two words, the state of a model's random numbers.  It is no parameter of the model, so no checkpoint
    holds it."""

    def __init__(self):
        self.words = Parameter(Tensor(_words(0)), name="noise_key", requires_grad=False)
        # Other devices draw by themselves: an NPU has no product of uint32.
        self.given = (self.words,) if device.target() == "CPU" else (None,)

    def set(self, *seeds):
        """A function of whole numbers, e.g. (seed, step, rank)."""
        self.words.set_data(Tensor(_words(*seeds)))


def _words(*seeds):
    return np.random.default_rng(seeds).integers(0, 2**32, 2, dtype=np.uint32)


def advance(words):
    """Other draws from now on."""
    ops.assign(words, words * ODD + STEP)


def uniform(words, site, shape):
    """float32 in [0, 1).  ``site``: a whole number, different for each place that draws with the same key."""
    if words is None:
        return mint.rand(shape)  # ops.rand has no kernel on Ascend
    return ops.bitwise_right_shift(_bits(words, site, shape), LOW).astype(ms.float32) * 2.0**-24


def _bits(words, site, shape):
    """uint32 of ``shape``, pairwise independent: table · a + b with an odd a; every row of the table's width
    has its own a."""
    size = 1
    for n in shape:
        size *= n
    spread = Tensor((2 * 0x9E3779B1 * (site + 1)) % 2**32, ms.uint32)
    a, b = words[0] * spread + ONE, words[1] + spread
    if size <= WIDTH:
        return (TABLE[:size] * a + b).reshape(shape)
    rows = -(-size // WIDTH)
    a_R1 = (TABLE[:rows] * a * TWO + ONE)[:, None]
    return (TABLE[None] * a_R1 + b).reshape(-1)[:size].reshape(shape)


def bind(model):
    """Give all that draws in ``model`` one new key and a place of its own; returns the key."""
    key, draws = (
        RngState(),
        [cell for _, cell in model.cells_and_names() if isinstance(cell, (Dropout, DropPath))],
    )
    for site, cell in enumerate(draws, 1):  # 0 is the model's own
        # other samples, other draws; and so for other heads
        site += len(draws) * comm.mesh.model * comm.data_rank()
        site += len(draws) * comm.mesh.model_rank if getattr(cell, "of_heads", False) else 0
        cell.site, cell._words = site, key.given
    return key


def _check_bound(words):
    if len(words) == 0:
        raise RuntimeError(
            "no key to draw random numbers with: call mindblip2.models.rng.bind(model) before training"
        )


class Dropout(nn.Cell):
    """In training an element is 0 with probability ``p``, the others are scaled up.  ``of_heads``: of an
    attention whose heads may be spread over cards; elsewhere all cards of a model group draw the same."""

    def __init__(self, p, of_heads=False):
        super().__init__()
        self.p, self.of_heads, self.site, self._words = p, of_heads, 0, ()
        self.native = None if device.target() == "CPU" else nn.Dropout(p=p)

    def drops(self):
        """Does it change anything?"""
        return self.training and self.p > 0

    def construct(self, x):
        if not self.drops():
            return x
        _check_bound(self._words)
        if self.native is not None:
            return self.native(x)
        keep = uniform(self._words[0], self.site, x.shape) >= self.p
        return x * (keep.astype(x.dtype) * (1 / (1 - self.p)))


class DropPath(nn.Cell):
    """Stochastic depth: in training a sample's residual branch is 0 with probability ``rate``, the others are
    scaled up."""

    def __init__(self, rate):
        super().__init__()
        self.rate, self.site, self._words = rate, 0, ()

    def construct(self, x):
        if not self.training or self.rate == 0:
            return x
        _check_bound(self._words)
        keep = uniform(self._words[0], self.site, (x.shape[0],) + (1,) * (x.ndim - 1)) >= self.rate
        return x * (keep.astype(x.dtype) * (1 / (1 - self.rate)))
