"""The only difference between one card and many: the mesh of processes, and what travels between them.

A mesh is data parallel × model parallel; rank = data_rank · model + model_rank, so that the cards of one
model group are neighbours. Cards of one data group (the same model_rank) hold the same part of the weights
and read different samples; cards of one model group (the same data_rank) read the same samples and hold
different parts of the split weights.

Functions of tensors (``enter``, ``leave``, ``gather``, …) may be called in ``construct``.  On a mesh of one
they return what they are given, and the compiled graph holds no collective.

MindSpore's CPU collectives know nothing but the sum of float32 and float16 within a group, so a gather there
is the sum of arrays that are zero but for the own rows, and whole numbers travel as two halves.  Other
devices use their own operators, which have run on no hardware yet.

B own rows · G rows of all cards of the data group
"""

import contextlib
import json
import os
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

MESSAGE = 1 << 22  # numbers of the host that travel at once
HALF = 1 << 16  # float32 holds whole numbers up to 2²⁴


@dataclass(frozen=True)
class Mesh:
    """``data`` × ``model`` processes, seen from process ``rank``."""

    data: int = 1
    model: int = 1
    rank: int = 0

    data_rank = property(lambda self: self.rank // self.model)
    model_rank = property(lambda self: self.rank % self.model)
    size = property(lambda self: self.data * self.model)


mesh = Mesh()
_data, _model = None, None  # both groups, for what is done outside of a graph
# The cells of both groups, by names of this module: of a cell that is an attribute of something else
# MindSpore's graphs ignore the bprop.
_enter, _leave, _total_model, _gather_model, _total_data, _gather_data = (None,) * 6
_tally = None


def world_size():
    """Number of processes that the launcher (msrun) started; 1 without a launcher."""
    return int(os.environ.get("MS_WORKER_NUM", "1"))


def init_mesh(data, model):
    """Join the other processes as a mesh of ``data`` × ``model``, which must be ``world_size()``.  Does
    nothing the second time."""
    global mesh, _data, _model, _enter, _leave, _total_model, _gather_model, _total_data, _gather_data
    if data * model != world_size():
        raise ValueError(f"a mesh of {data} x {model} on {world_size()} processes")
    if (mesh.data, mesh.model) == (data, model):
        return
    if mesh.size > 1:
        raise RuntimeError(
            f"the processes are a mesh of {mesh.data} x {mesh.model} already: one process cannot change to "
            f"{data} x {model}"
        )
    from mindspore import communication

    communication.init()
    rank = communication.get_rank()
    mesh = Mesh(data, model, rank)
    _data = _Group("data", [mesh.model_rank + model * i for i in range(data)], rank)
    _model = _Group("model", [mesh.data_rank * model + i for i in range(model)], rank)
    _enter, _leave, _total_model, _gather_model = _model.cells(_Enter, _Leave, _Total, _Gather)
    _total_data, _gather_data = _data.cells(_Total, _Gather)


@contextlib.contextmanager
def simulate_mesh(data, model, rank=0):
    """Cells that are made here have the shapes of one card of a mesh that is not there; they cannot
    compute."""
    global mesh
    before, mesh = mesh, Mesh(data, model, rank)
    try:
        yield mesh
    finally:
        mesh = before


def is_main_process():
    """Whether this process is the one that prints and writes."""
    return mesh.rank == 0


@contextlib.contextmanager
def record_communication():
    """The list of (what, group, bytes of this process's own contribution) of everything that travels in
    PyNative mode inside."""
    global _tally
    before, _tally = _tally, []
    try:
        yield _tally
    finally:
        _tally = before


# ------------------------------------------------------------------------------------------------ within a mo
def copy_to_tensor_parallel(x):
    """Before products whose weights are split: x itself.  Its gradient, of which every card has a part, is
    summed."""
    return x if mesh.model == 1 else _enter(x)


def reduce_from_tensor_parallel(x):
    """Behind products whose weights are split: the sum of all cards' parts.  Its gradient is the same on
    every card."""
    return x if mesh.model == 1 else _leave(x)


def all_gather_model(x):
    """x of every card of the model group, without gradient: (…) → (model, …)."""
    return x[None] if mesh.model == 1 else _gather_model(ops.stop_gradient(x)[None])


# ------------------------------------------------------------------------------------------------ within a da
def data_rank():
    """Index of this process in the data group."""
    return mesh.data_rank


def all_gather_data(x_B):
    """(B, …) on every card → (G, …): the rows of all cards in rank order.  A row's gradient is the sum of
    what all cards have of it; of whole numbers there is none."""
    if mesh.data == 1:
        return x_B
    if x_B.dtype == ms.int32:
        high, low = (
            _gather_data((x_B // HALF).astype(ms.float32)),
            _gather_data((x_B % HALF).astype(ms.float32)),
        )
        return high.astype(ms.int32) * HALF + low.astype(ms.int32)
    return _gather_data(x_B)


def all_reduce_mean(x):
    """The mean over the data group, without gradient."""
    return x if mesh.data == 1 else _total_data(ops.stop_gradient(x)) / mesh.data


def all_reduce_sum(x, group):
    """The sum over the "data" or the "model" group of a tensor that needs no gradient."""
    if (mesh.data if group == "data" else mesh.model) == 1:
        return x
    return _total_data(x) if group == "data" else _total_model(x)


# ------------------------------------------------------------------------------------------------ on the host
def gather_shards(array):
    """The arrays of all cards of the model group, in rank order."""
    return [array] if mesh.model == 1 else list(_model.rows(array))


def broadcast_from(array, owner):
    """An array that only data rank ``owner`` has right; the others give one of its shape and dtype."""
    return (
        array if mesh.data == 1 else _data.sum_of(array if mesh.data_rank == owner else np.zeros_like(array))
    )


def data_shard(rows):
    """This data rank's rows of a list or array; ``collect`` puts them together again."""
    return rows[mesh.data_rank :: mesh.data]


def gather_data_shards(rows):
    """What every data rank made of its ``share``, a list of anything that JSON can hold, in the order of the
    whole list."""
    if mesh.data == 1:
        return rows
    text = np.frombuffer(json.dumps(rows).encode(), np.uint8)
    sizes = _data.rows(np.array([len(text)], np.float32)).astype(int)[:, 0]
    lines = _data.rows(np.pad(text, (0, sizes.max() - len(text))).astype(np.float32)).astype(np.uint8)
    shares = [json.loads(line[:size].tobytes().decode()) for line, size in zip(lines, sizes)]
    return [shares[i % mesh.data][i // mesh.data] for i in range(sum(map(len, shares)))]


def host_all_reduce_data(array):
    """The sum over the data group of float32 arrays, of which every card has filled in other places."""
    return array if mesh.data == 1 else _data.sum_of(array)


def host_all_reduce(array):
    """The sum of the float32 arrays of all processes."""
    for group, cards in ((_model, mesh.model), (_data, mesh.data)):
        if cards > 1:
            array = group.sum_of(array)
    return array


def barrier():
    """Wait until all processes are here."""
    host_all_reduce(np.zeros(1, np.float32))


@contextlib.contextmanager
def fail_together():
    """A block that ends on all processes with an error where it ends on one of them with an Exception: nobody
    waits for a process that has given up.  The collectives within the block must be the same on all, errors
    or not."""
    try:
        yield
    except Exception:
        host_all_reduce(np.ones(1, np.float32))
        raise
    if host_all_reduce(np.zeros(1, np.float32))[0]:
        raise RuntimeError("another process of the mesh has failed; its message says why")


# ------------------------------------------------------------------------------------------------ collectives
def _note(what, group, x):
    if _tally is not None:
        _tally.append((what, group, x.size * x.itemsize))


class _Group:
    """One group; ``members`` are its ranks.  In a group of one nothing travels."""

    def __init__(self, name, members, rank):
        self.kind, self.name, self.place, self.cards = (
            name,
            f"{name}_{members[0]}",
            members.index(rank),
            len(members),
        )
        if self.cards > 1:
            from mindspore import communication

            communication.create_group(self.name, members)
            self.sum = ops.AllReduce(group=self.name)

    def cells(self, *kinds):
        return [kind(self) if self.cards > 1 else None for kind in kinds]

    def sum_of(self, array):
        """The sum of all cards' arrays, which travel in parts: on a CPU a message that takes 30 s is given
        up."""
        flat = np.ascontiguousarray(array).reshape(-1)
        parts = [
            self.sum(Tensor(flat[start : start + MESSAGE])).asnumpy()
            for start in range(0, max(flat.size, 1), MESSAGE)
        ]
        return np.concatenate(parts).reshape(array.shape)

    def rows(self, array):
        """The arrays of all cards, stacked."""
        stacked = np.zeros((self.cards, *array.shape), array.dtype)
        stacked[self.place] = array
        return self.sum_of(stacked)


class _Total(nn.Cell):
    def __init__(self, group):
        super().__init__(auto_prefix=False)
        self.sum, self.kind = ops.AllReduce(group=group.name), group.kind

    def construct(self, x):
        _note("all_reduce", self.kind, x)
        return self.sum(x)


class _Enter(_Total):
    def construct(self, x):
        # not x itself: see docs/internals/mindspore_notes.md on cells that return what they are given
        return x * 1.0

    def bprop(self, x, out, gradient):
        """The sum of all cards' gradients."""
        _note("all_reduce", self.kind, gradient)
        return (self.sum(gradient),)


class _Leave(_Total):
    def bprop(self, x, out, gradient):
        """The gradient as it comes."""
        return (gradient,)


class _Gather(_Total):
    def __init__(self, group):
        super().__init__(group)
        self.place, self.cards = group.place, group.cards
        self.native = None if ms.get_context("device_target") == "CPU" else ops.AllGather(group=group.name)

    def construct(self, x_B):
        _note("all_gather", self.kind, x_B)
        if self.native is not None:
            return self.native(x_B)
        zeros = ops.zeros(x_B.shape, x_B.dtype)
        return self.sum(ops.cat([x_B if i == self.place else zeros for i in range(self.cards)]))

    def bprop(self, x_B, out, gradient_G):
        """The own rows of the sum of all cards' gradients."""
        _note("all_reduce", self.kind, gradient_G)
        rows = x_B.shape[0]
        return (self.sum(gradient_G)[self.place * rows : (self.place + 1) * rows],)
