"""safetensors files, read tensor by tensor: a JSON header with types, shapes and places, and the bytes behind
it."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch

from mindblip2.checkpoint.ckpt import CheckpointError
from mindblip2.file_io import regular_file

MAX_HEADER_BYTES = 100_000_000  # as the format's own library
MAX_DIMENSIONS = 16
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}


class TensorRecord(NamedTuple):
    """Where a tensor lies: ``start`` is a byte of the file."""

    dtype: torch.dtype
    shape: tuple
    start: int
    size: int


class SafetensorsFile:
    """``content``: name → :class:`Record`; ``tensor(record)`` reads one.

    Raises :class:`CheckpointError`, that names the file, where the header is damaged or does not fit the
    bytes behind it."""

    def __init__(self, path):
        self.path = regular_file(Path(path))
        self._file, size = open(self.path, "rb"), self.path.stat().st_size
        try:
            self.content = self._records(size)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise CheckpointError(
                f"{path} is truncated or no safetensors file ({size:,} bytes): {str(error)[:200]}; get it "
                "again and "
                "compare the size"
            ) from None

    def tensor(self, record):
        """The tensor of a record, in memory of its own."""
        data = torch.empty(record.size, dtype=torch.uint8)
        self._file.seek(record.start)
        if self._file.readinto(data.numpy()) != record.size:
            raise CheckpointError(f"{self.path} became shorter while it was read")
        return (
            data.view(record.dtype).reshape(record.shape)
            if record.size
            else torch.empty(record.shape, dtype=record.dtype)
        )

    def _records(self, size):
        length = int.from_bytes(self._file.read(8), "little")
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(
                f"its header should have {length:,} bytes, at most "
                f"{min(MAX_HEADER_BYTES, max(size - 8, 0)):,} can be"
            )
        header = json.loads(self._file.read(length).decode("utf-8"), object_pairs_hook=_unique)
        if not isinstance(header, dict):
            raise ValueError("its header is no mapping")
        header.pop("__metadata__", None)
        found = {name: _record(name, about, 8 + length) for name, about in header.items()}
        end = 8 + length
        for name, record in sorted(found.items(), key=lambda item: (item[1].start, item[1].size)):
            if record.start != end:
                raise ValueError(
                    f"the bytes of {name} begin at {record.start:,}, expected at {end:,}, behind the tensor "
                    "before"
                )
            end += record.size
        if end != size:
            raise ValueError(f"{size:,} bytes are there, {end:,} expected")
        return found


def _record(name, about, begin):
    dtype, shape, (start, stop) = about["dtype"], about["shape"], about["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"{name} is of type {dtype!r:.50}, known are {', '.join(DTYPES)}")
    if (
        not all(type(number) is int and 0 <= number < 2**62 for number in (*shape, start, stop))
        or len(shape) > MAX_DIMENSIONS
    ):
        raise ValueError(f"{name} has a shape or place that is no list of numbers")
    if math.prod(shape) * DTYPES[dtype].itemsize != stop - start:
        raise ValueError(f"{name} of type {dtype} and shape {tuple(shape)} has {stop - start:,} bytes")
    return TensorRecord(DTYPES[dtype], tuple(shape), begin + start, stop - start)


def _unique(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("its header holds a name twice")
    return found
