"""What one host writes down for another: a single .npz with inputs, torch's results in its dtype and the
float64 truth.

An ordinary .npz (a zip of .npy files), so each array carries a checksum and a length, and nothing in it can
run: arrays of objects are refused. An array that several cases share is there once, under the hash of its
bytes. ``header`` is JSON as bytes.
"""

import contextlib
import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from mindblip2.file_io import atomic_file, regular_file

FORMAT = "mindblip2 parity dump 1"
HEADER = "header"
MOST_UNPACKED = 256 * 2**20  # bytes of the arrays in a compressed .npz


class DumpError(ValueError):
    """A file that is no usable dump; the message says what, got, expected, and the next step."""


class Writer:
    """Writes arrays as they come; the file appears when :meth:`close` has written the header. As a context it
    leaves nothing behind when the block ends with an error."""

    def __init__(self, path: str | Path):
        self.path, self.file = Path(path), atomic_file(path, "wb")
        self.zip, self.there, self.entries = (
            zipfile.ZipFile(self.file.__enter__(), "w", zipfile.ZIP_STORED),
            set(),
            [],
        )
        self.half = "vision"  # of a model that sees and speaks; "language" is the other

    def add(
        self, kind: str, name: str, torch32: Mapping, truth: Mapping, inputs: Mapping | None = None, **more
    ) -> None:
        """One comparison: ``kind`` is "case", "start" or "chain" (mindblip2/parity/offline.py)."""
        arrays = {"inputs": inputs or {}, "torch32": torch32, "truth": truth}
        stored = {
            group: {key: self.store(value) for key, value in values.items()}
            for group, values in arrays.items()
        }
        self.entries.append({"kind": kind, "half": self.half, "name": name} | stored | more)

    def store(self, array: np.ndarray) -> str:
        """The name under which an array lies in the file."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        about = f"{array.dtype.str}{array.shape}".encode()
        name = hashlib.sha256(about + array.tobytes()).hexdigest()[:24]
        if name not in self.there:
            with self.zip.open(name + ".npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
            self.there.add(name)
        return name

    def close(self, **header) -> None:
        """Write the header, and give the file its name."""
        text = json.dumps({"format": FORMAT} | header | {"entries": self.entries})
        with self.zip.open(HEADER + ".npy", "w") as file:
            np.lib.format.write_array(file, np.frombuffer(text.encode(), np.uint8), allow_pickle=False)
        self.zip.close()
        self.file.__exit__(None, None, None)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is not None:
            with contextlib.suppress(OSError, ValueError):  # its end may not fit on the disk either
                self.zip.close()
            self.file.__exit__(kind, error, trace)


class Arrays(Mapping):
    """Name → array of an .npz, read when asked for. Sizes are checked before memory is taken: an array has as
    many bytes as its shape says, and all arrays together no more than the file, or, in a ``compressed`` one,
    than ``MOST_UNPACKED``.

    Raises FileNotFoundError, or :class:`DumpError` that names the file; ``advice`` is the next step."""

    def __init__(
        self, path: str | Path, compressed: bool = False, advice: str = "Copy it again and compare the size"
    ):
        self.path, self.advice = regular_file(path), advice
        with self.reading():
            self.zip = zipfile.ZipFile(self.path)
        self.members = {one.filename.removesuffix(".npy"): one for one in self.zip.infolist()}
        allowed = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) if compressed else (zipfile.ZIP_STORED,)
        other = [name for name, one in self.members.items() if one.compress_type not in allowed]
        if other:
            raise DumpError(
                f"{path}: {other[0]} is compressed, and parity writes arrays that are not. {advice}"
            )
        size, most = (
            sum(one.file_size for one in self.members.values()),
            MOST_UNPACKED if compressed else self.path.stat().st_size,
        )
        if size > most:
            raise DumpError(
                f"{path} is damaged: its arrays would take {size:,} bytes, expected at most {most:,}. "
                f"{advice}"
            )

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.members:
            raise DumpError(f"{self.path} holds no {name}. {self.advice}")
        member = self.members[name]
        with self.reading(), self.zip.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(file)
            expected = math.prod(shape) * dtype.itemsize
            if dtype.hasobject or min(shape, default=0) < 0 or expected != member.file_size - file.tell():
                raise ValueError(
                    f"{name} of shape {shape} and type {dtype} has {member.file_size - file.tell():,} bytes"
                )
        with self.reading(), self.zip.open(member) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """What may go wrong while a damaged file is read, in one line."""
        try:
            yield
        except DumpError:  # named already
            raise
        except (
            zipfile.BadZipFile,
            zlib.error,
            OSError,
            ValueError,
            EOFError,
            KeyError,
            OverflowError,
            NotImplementedError,
            TypeError,
            RuntimeError,
            SyntaxError,
            MemoryError,
            RecursionError,
        ) as error:
            raise DumpError(self.damaged(error)) from None

    def damaged(self, error: Exception) -> str:
        """The message for a damaged file."""
        first = (str(error).splitlines() or [""])[0]
        return (
            f"{self.path} is damaged, truncated or no parity dump ({self.path.stat().st_size:,} bytes): "
            f"{type(error).__name__} {first[:120]}. {self.advice}"
        )

    def __contains__(self, name: object) -> bool:
        return name in self.members  # Mapping's own would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)


GROUPS = ("inputs", "torch32", "truth")
OF_HEADER = {"config": dict, "seed": int, "dtype": str, "fingerprints": dict, "weights": str, "entries": list}
OF_ENTRY = {"kind": ("case", "start", "chain"), "half": ("vision", "language"), "name": str} | dict.fromkeys(
    GROUPS, dict
)
OF_CASE = {"weights": list, "backward": bool, "fixed": list, "stacked": list, "values": bool}


class DumpFile:
    """Reads a dump, array by array. Raises FileNotFoundError, or :class:`DumpError` for a file that is
    damaged or something else."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(
                f"no dump at {path}: make one with python -m parity dump on a host with torch, and copy it "
                "here"
            )
        self.arrays = Arrays(path)
        if HEADER not in self.arrays:
            raise DumpError(
                f"{path} is no parity dump: it has no header. Make one with python -m parity dump"
            )
        self.header = self.read_header()
        missing = {
            name for entry in self.entries for group in GROUPS for name in entry[group].values()
        } - set(self.arrays)
        if missing:
            raise DumpError(
                f"{path} is incomplete: {len(missing)} arrays of its header are missing. Dump again"
            )

    def read_header(self) -> dict:
        with self.arrays.reading():  # a UnicodeDecodeError and a JSONDecodeError are ValueErrors
            header = json.loads(self[HEADER].tobytes())
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            found = header.get("format") if isinstance(header, dict) else type(header).__name__
            raise DumpError(
                f"{self.path} has format {found!r}, expected {FORMAT!r}: dump again with this version of "
                "parity"
            )
        self.check(header, OF_HEADER, "its header")
        for number, entry in enumerate(header["entries"]):
            self.check(entry, OF_ENTRY, f"entry {number}")
            if entry["kind"] == "case":
                self.check(entry, OF_CASE, f"entry {number}")
            names = [name for group in GROUPS for name in entry[group].values()]
            names += [name for key in ("weights", "fixed", "stacked") for name in entry.get(key, ())]
            if not all(isinstance(name, str) for name in names):
                raise DumpError(
                    f"{self.path} is damaged: entry {number} has names that are no texts. "
                    f"{self.arrays.advice}"
                )
        return header

    def check(self, record: object, expected: Mapping, what: str) -> None:
        """Raise unless ``record`` is a mapping that has each key, with a value of that type or one of those
        values."""
        for key, kind in expected.items():
            value = record.get(key) if isinstance(record, dict) else None
            right = (
                value in kind
                if isinstance(kind, tuple)
                else isinstance(value, kind) and not (kind is int and isinstance(value, bool))
            )
            if not right:
                named = " or ".join(kind) if isinstance(kind, tuple) else f"a {kind.__name__}"
                raise DumpError(
                    f"{self.path} is damaged: {what} has {key} = {str(value)[:60]}, expected {named}. "
                    f"{self.arrays.advice}"
                )

    @property
    def entries(self) -> list[dict]:
        """All comparisons, in the order of the network."""
        return self.header["entries"]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def group(self, entry: dict, group: str) -> dict[str, np.ndarray]:
        """ "inputs", "torch32" or "truth" of an entry."""
        return {key: self[name] for key, name in entry[group].items()}
