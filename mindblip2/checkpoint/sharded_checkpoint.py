"""Sharded checkpoints: one file per card of a model group, which holds the card's shards of the divided
weights and the others whole.

mindblip2 saves whole checkpoints, whatever the mesh.  Shards come from other programs, or are made so that no
card reads more than its own.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError
from mindblip2.distributed.sharding import whole_shape

SHARD_NAME = "piece_{}_of_{}.ckpt"
SHARD_PATTERN = re.compile(r"piece_(0|[1-9]\d{0,17})_of_([1-9]\d{0,17})\.ckpt")


def shard_files(folder: str | Path, cards: int | None = None) -> list[Path]:
    """The files of a folder in the order of the cards: ``piece_I_of_N.ckpt``, or MindFormers'
    ``rank_I/*.ckpt``, of which the first ``cards`` are a model group; [] where there are none.  Raises
    CheckpointError where one is missing, or is not the only one."""
    folder = Path(folder)
    named = _named(folder)
    if named:
        counts = sorted({count for _, count in named})
        missing = counts[0] - len(named) if len(counts) == 1 else 0
        if len(counts) > 1 or missing:
            first = next(
                (
                    SHARD_NAME.format(rank, counts[0])
                    for rank in range(counts[0])
                    if (rank, counts[0]) not in named
                ),
                "",
            )
            raise CheckpointError(
                f"{folder} is no sharded checkpoint: "
                + (
                    f"it holds shards of {' and of '.join(map(str, counts))}; leave those of one"
                    if len(counts) > 1
                    else f"{first}{f' and {missing - 1} more are' if missing > 1 else ' is'} not there; copy all {counts[0]}"
                )
            )
        return [named[rank, counts[0]] for rank in range(counts[0])]
    ranks = [path for path in folder.glob("rank_[0-9]*") if path.is_dir()]
    ranks = sorted(
        ranks, key=lambda path: int(path.name[5:]) if re.fullmatch(r"[0-9]{1,18}", path.name[5:]) else -1
    )[:cards]
    if len(ranks) < 2:  # one rank: a run of one card, whose checkpoint is whole
        return []
    files = [sorted(rank.glob("*.ckpt")) for rank in ranks]
    for i, (rank, inside) in enumerate(zip(ranks, files)):
        if rank.name != f"rank_{i}" or len(inside) != 1:
            raise CheckpointError(
                f"{folder} is no sharded checkpoint: expected one .ckpt in rank_{i}, "
                + (f"but {rank.name} comes next" if rank.name != f"rank_{i}" else f"got {len(inside)}")
            )
    return [inside[0] for inside in files]


def _named(folder: Path) -> dict[tuple[int, int], Path]:
    """{(rank, count): path} of the shards in a folder.  Raises CheckpointError for a name that is not one of
    a shard."""
    named = {}
    for path in folder.glob("piece_*_of_*.ckpt"):
        numbers = SHARD_PATTERN.fullmatch(path.name)
        rank, count = map(int, numbers.groups()) if numbers else (0, 0)
        if rank >= count:
            raise CheckpointError(
                f"{path} has no name of a shard: expected {SHARD_NAME.format('I', 'N')}, I from 0 to N - 1; "
                "rename it, or "
                "take it out of the folder"
            )
        named[rank, count] = path
    return named


def open_checkpoint(path: str | Path, parameters: Mapping) -> "Checkpoint | ShardedCheckpoint":
    """The :class:`Checkpoint` of a file, or the :class:`ShardedCheckpoint` of a folder that holds shards."""
    files = shard_files(path) if Path(path).is_dir() else []
    return ShardedCheckpoint(files, parameters) if len(files) > 1 else Checkpoint(path)


class ShardedCheckpoint(Mapping):
    """Name → whole array of a sharded checkpoint, put together when it is asked for; else as
    :class:`Checkpoint`.

    ``parameters``: those of the model, which say how each is divided.  Raises CheckpointError where the files
    hold different names, or shapes that are no shards; and, when it is read, where a weight that is not
    divided differs between them."""

    def __init__(self, paths: Sequence[Path], parameters: Mapping):
        self.path, self.files = Path(paths[0]).parent, [Checkpoint(path) for path in paths]
        first, cards = self.files[0], len(paths)
        self.types, self.shapes = first.types, dict(first.shapes)
        self.divisions = {
            name: p.division
            for name, p in parameters.items()
            if name in first and getattr(p, "division", None)
        }
        for file in self.files[1:]:
            odd = sorted(set(file) ^ set(first))
            if odd or file.types != first.types:
                raise CheckpointError(
                    f"{first.path} and {file.path} belong to different models: "
                    + (f"only one holds {odd[0]}" if odd else "their dtypes differ")
                )
        for name, division in self.divisions.items():
            expected = division.shape(whole_shape(parameters[name]), cards)
            wrong = next((file for file in self.files if file.shapes[name] != expected), None)
            if wrong:
                raise CheckpointError(
                    f"{wrong.path}: {name} has shape {wrong.shapes[name]}, but a shard of {cards} has "
                    f"{expected}; are "
                    "these all shards, of this configuration?"
                )
            self.shapes[name] = whole_shape(parameters[name])

    def __getitem__(self, name):
        return self._whole(name, lambda file: file[name])

    def view(self, name: str) -> np.ndarray:
        """The array."""
        return self[name]

    def float32(self, name: str) -> np.ndarray:
        """The array in float32, whatever the files hold."""
        return self._whole(name, lambda file: file.float32(name))

    def _whole(self, name, read):
        arrays = [read(file) for file in self.files]
        if name in self.divisions:
            return self.divisions[name].join(arrays)
        for file, array in zip(self.files[1:], arrays[1:]):
            if array.shape != arrays[0].shape or not np.array_equal(
                array.reshape(-1).view(np.uint8), arrays[0].reshape(-1).view(np.uint8)
            ):
                raise CheckpointError(
                    f"{name}, which every card holds whole, is another in {file.path} than in "
                    f"{self.files[0].path}: are "
                    "they shards of one step of one run?"
                )
        return arrays[0]

    def __contains__(self, name):
        return name in self.files[0]

    def __iter__(self):
        return iter(self.files[0])

    def __len__(self):
        return len(self.files[0])
