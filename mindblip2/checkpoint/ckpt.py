"""MindSpore's .ckpt files, read and written tensor by tensor.

A .ckpt is a protobuf message of repeated entries (tag, dims, type, bytes).  ``mindspore.load_checkpoint``
reads the file whole and parses it whole, two copies at the least; here a file is indexed, and a tensor is
read when asked for.  Nothing in the format can run code.
"""

import itertools
import math
import mmap
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mindblip2.file_io import atomic_file

# MindSpore's type names; bfloat16 has no NumPy type and travels as its 16 bits.
NUMPY_TYPES = {
    "Float32": np.float32,
    "Float16": np.float16,
    "BFloat16": np.uint16,
    "Float64": np.float64,
    "Int32": np.int32,
    "Int64": np.int64,
    "Int16": np.int16,
    "Int8": np.int8,
    "UInt64": np.uint64,
    "UInt32": np.uint32,
    "UInt16": np.uint16,
    "UInt8": np.uint8,
    "Bool": np.bool_,
}
# Unsigned integers of the same width and the bits of the exponent, which are all set in NaN and Inf and in no
# other number.
EXPONENTS = {
    "Float32": (np.uint32, 0x7F800000),
    "Float16": (np.uint16, 0x7C00),
    "BFloat16": (np.uint16, 0x7F80),
    "Float64": (np.uint64, 0x7FF0000000000000),
}
CHUNK = 1 << 16  # numbers that are looked at in one go: they stay in the processor's cache
TRAILER = b"crc_num"  # MindSpore's optional checksum at the end: this and ten bytes, big-endian
MAX_TENSORS, MAX_FIELDS, MAX_DIMENSIONS, MAX_NUMBERS = 1_000_000, 100, 16, 1 << 48
# larger tensors become several entries of the same tag, as MindSpore writes them
SLICE_BYTES = 512 * 1024 * 1024
# a field that MindSpore's messages do not have, which readers of protobuf skip
FILLER = 15
# we begin every tensor's bytes at a multiple of it, so that a mapped file is usable as it lies
ALIGNMENT = 64


class CheckpointError(ValueError):
    """A file that is no usable checkpoint; the message says what, got, expected, and the next step."""


def count_not_finite(array: np.ndarray, kind: str) -> int:
    """How many numbers of an array of MindSpore's type ``kind`` are NaN or Inf; bfloat16 as its 16 bits."""
    if kind not in EXPONENTS:
        return 0
    unsigned, exponent = EXPONENTS[kind]
    bits, found = array.reshape(-1).view(unsigned), 0
    for start in range(0, bits.size, CHUNK):
        exponents = bits[start : start + CHUNK] & unsigned(exponent)
        if exponents.max() == exponent:
            found += int((exponents == exponent).sum())
    return found


def check_values(
    path: str | os.PathLike, name: str, array: np.ndarray, kind: str, is_temperature: bool = False
) -> None:
    """Raises :class:`CheckpointError` where an array of a file is no usable weight: a NaN or Inf, or a
    temperature that is not above 0."""
    bad = count_not_finite(array, kind)
    if bad:
        raise CheckpointError(
            f"{path}: {bad:,} of the {array.size:,} numbers of {name} are NaN or Inf, expected finite "
            "weights; get the "
            "file again, or take an earlier checkpoint"
        )
    if is_temperature and not (widened(array, kind) > 0).all():
        raise CheckpointError(
            f"{path}: {name}, the temperature that divides similarities, is {widened(array, kind).min():g}, "
            "expected "
            "above 0; get the file again, or take an earlier checkpoint"
        )


def widened(array: np.ndarray, kind: str) -> np.ndarray:
    """An array of MindSpore's type ``kind`` in float32."""
    if kind == "BFloat16":
        return np.asarray(array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32, copy=False)


class Checkpoint(Mapping):
    """Name → NumPy array of a .ckpt file; an array is read when it is asked for.  ``shapes`` and ``types``
    are known at once."""

    def __init__(self, path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(
                f"no checkpoint at {self.path.absolute()}: give the path of a .ckpt; "
                "convert/convert_weight.py "
                "makes one from published weights"
            )
        if self.path.stat().st_size == 0:
            raise CheckpointError(f"{self.path} is empty")
        # kept: the tensors belong to this file, even if another takes its name
        self._file = open(self.path, "rb")
        self.shapes, self.types, self._spans, self._sound = {}, {}, {}, set()
        self._mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        try:
            self._index(self._mapped)
        except (IndexError, KeyError, UnicodeDecodeError) as error:
            raise CheckpointError(
                _damaged(self.path, len(self._spans))
                if self._spans
                else _not_a_checkpoint(self.path, self._mapped[:8])
            ) from error
        for name, spans in self._spans.items():
            got = sum(stop - start for start, stop in spans)
            expected = math.prod(self.shapes[name]) * np.dtype(NUMPY_TYPES[self.types[name]]).itemsize
            if got != expected:
                raise CheckpointError(
                    f"{self.path} is damaged: {name} has {got} bytes, {expected} expected; "
                    "copy or convert it again"
                )

    def __getitem__(self, name):
        array = np.empty(self.shapes[name], NUMPY_TYPES[self.types[name]])
        flat, at = array.reshape(-1).view(np.uint8), 0
        for start, stop in self._spans[name]:
            self._file.seek(start)
            if self._file.readinto(flat[at : at + stop - start]) != stop - start:
                raise CheckpointError(f"{self.path} became shorter while it was read")
            at += stop - start
        return array

    def view(self, name):
        """The array where it lies in the mapped file, without a copy unless it lies there in slices.  Writing
        to it does not change the file; the file must not be overwritten in place meanwhile.  In files that
        are not ours it is not aligned (``flags.aligned``): write it elsewhere, or copy it before
        computing."""
        if len(self._spans[name]) > 1:
            return self[name]
        start, _ = self._spans[name][0]
        count = math.prod(self.shapes[name])
        return np.frombuffer(self._mapped, NUMPY_TYPES[self.types[name]], count, start).reshape(
            self.shapes[name]
        )

    def __contains__(self, name):
        return name in self._spans  # Mapping's own would read the array

    def __iter__(self):
        return iter(self._spans)

    def __len__(self):
        return len(self._spans)

    def float32(self, name):
        """The array in float32, whatever the file holds; a :meth:`view` where it is aligned float32 already.
        Raises :class:`CheckpointError` where a number is NaN or Inf, or ``temp`` is not above 0."""
        array = self._float32(name)
        if name not in self._sound:
            check_values(self.path, name, array, "Float32", name == "temp")
            self._sound.add(name)
        return array

    def _float32(self, name):
        if self.types[name] == "Float32" and self.view(name).flags.aligned:
            return self.view(name)
        return widened(self[name], self.types[name])

    def _index(self, data):
        at, end = 0, len(data)
        while at < end:
            if data[at : at + len(TRAILER)] == TRAILER and end - at == len(TRAILER) + 10:
                self._check_crc(at, int.from_bytes(data[end - 10 : end], "big"))
                break
            key, at = _varint(data, at)
            size, at = _varint(data, at)
            if key != 0x0A:
                raise KeyError(key)
            if at + size > end:
                raise CheckpointError(
                    f"{self.path} is truncated: {end} bytes are there, at least {at + size} are needed; "
                    "copy or convert it again"
                )
            self._entry(data, at, at + size)
            at += size
            if len(self._spans) > MAX_TENSORS:
                raise CheckpointError(
                    f"{self.path} holds more than {MAX_TENSORS:,} tensors, which no model here has; get it "
                    "again"
                )

    def _check_crc(self, end, expected):
        crc = 0
        self._file.seek(0)
        for start in range(0, end, 1 << 20):
            crc = zlib.crc32(self._file.read(min(1 << 20, end - start)), crc)
        if crc != expected:
            raise CheckpointError(
                f"{self.path} is damaged: its checksum is {crc:08x}, {expected:08x} expected; copy or "
                "convert it again"
            )

    def _entry(self, data, at, end):
        """Index one entry.  A tensor is several entries only as MindSpore writes its slices: one behind the
        other, of equal shape."""
        name, dims, kind, span = None, [], None, None
        for field, start, stop in _fields(data, at, end):
            if field == 1:
                name = data[start:stop].decode()
            elif field == 2:
                for inner, low, high in _fields(data, start, stop):
                    if inner == 1:
                        dims += _integers(data, low, high)
                    elif inner == 2:
                        kind = data[low:high].decode()
                    elif inner == 3:
                        span = (low, high)
        if kind == "str":  # a remark that a trainer added, no tensor
            return
        if name is None or kind not in NUMPY_TYPES or span is None:
            raise KeyError(kind)
        if len(dims) > MAX_DIMENSIONS or math.prod(max(n, 1) for n in dims) > MAX_NUMBERS:
            raise IndexError("shape")
        # dims [0] is a scalar to MindSpore, or an empty vector
        scalar = dims in ([0], []) and span[1] > span[0]
        shape = () if scalar else tuple(dims)
        if name in self._spans and (
            name != next(reversed(self._spans)) or (shape, kind) != (self.shapes[name], self.types[name])
        ):
            raise CheckpointError(
                f"{self.path} is damaged: {name} is in it twice, as {self.types[name]} {self.shapes[name]} "
                f"and as {kind} "
                f"{shape}, expected once; copy or convert it again"
            )
        self.shapes[name], self.types[name] = shape, kind
        self._spans.setdefault(name, []).append(span)


def write_checkpoint(path, tensors, needed=None):
    """Write ``tensors``, an iterable of (name, MindSpore type name, array), one at a time; the file appears
    only when whole.

    ``needed``: the bytes of all of them, if they are known, for the message of a full disk.  Raises as
    ``file_io.atomic_file``."""
    with atomic_file(path, "wb", needed) as file:
        for name, kind, array in tensors:
            _write_entry(file, name, kind, np.ascontiguousarray(array).reshape(np.shape(array)))


def _write_entry(file, name, kind, array):
    if array.dtype != NUMPY_TYPES[kind]:
        raise TypeError(f"{name}: type {kind} needs {np.dtype(NUMPY_TYPES[kind])}, got {array.dtype}")
    dims = b"".join(b"\x08" + _encode(n) for n in (array.shape or (0,)))
    tag = _field(1, name.encode())
    about = dims + _field(2, kind.encode())
    data = memoryview(array.reshape(-1).view(np.uint8))
    for start in range(0, max(len(data), 1), SLICE_BYTES):
        piece, at = data[start : start + SLICE_BYTES], file.tell()
        heads = (_head(tag, about + _field(FILLER, bytes(gap)), len(piece)) for gap in itertools.count())
        file.write(next(head for head in heads if (at + len(head)) % ALIGNMENT == 0))
        file.write(piece)


def _head(tag, about, size):
    """An entry up to its ``size`` bytes of content."""
    about += b"\x1a" + _encode(size)
    about = b"\x12" + _encode(len(about) + size) + about
    return b"\x0a" + _encode(len(tag) + len(about) + size) + tag + about


def _field(number, content):
    return bytes([number << 3 | 2]) + _encode(len(content)) + content


def _encode(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def _varint(data, at):
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise KeyError("varint")


def _fields(data, at, end):
    """(field number, start, stop) of every field of a message; varints are given by the span of their
    bytes."""
    for _ in range(MAX_FIELDS):
        if at >= end:
            return
        key, at = _varint(data, at)
        if key & 7 == 0:
            start = at
            _, at = _varint(data, at)
            yield key >> 3, start, at
        elif key & 7 == 2:
            size, at = _varint(data, at)
            if at + size > end:
                raise IndexError("field beyond its message")
            yield key >> 3, at, at + size
            at += size
        else:
            raise KeyError(key)
    if at < end:
        raise IndexError("fields without end")


def _integers(data, at, end):
    numbers = []
    while at < end and len(numbers) <= MAX_DIMENSIONS:
        number, at = _varint(data, at)
        numbers.append(number)
    return numbers


def _damaged(path, whole):
    return (
        f"{path} is truncated or damaged after {whole} tensors ({path.stat().st_size:,} bytes); copy or "
        "convert it again"
    )


def _not_a_checkpoint(path, head):
    looks = (
        "a torch file (zip)"
        if head[:2] == b"PK"
        else "a torch file (pickle)"
        if head[:1] == b"\x80"
        else "something else"
    )
    return (
        f"{path} is not a MindSpore .ckpt but looks like {looks}; convert weights with: python "
        "convert/convert_weight.py "
        f"--torch_path {path} --mindspore_path out.ckpt"
    )
