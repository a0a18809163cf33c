"""What one host writes down for another: a single .npz with inputs, torch's results in its dtype and the float64 truth.

An ordinary .npz (a zip of .npy files), so each array carries a checksum and a length, and nothing in it can run: arrays of objects
are refused. An array that several cases share is there once, under the hash of its bytes. ``header`` is JSON as bytes.
"""

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mindblip2.file_io import atomic_file

FORMAT = "mindblip2 parity dump 1"
HEADER = "header"


class DumpError(ValueError):
    """A file that is no usable dump; the message says what, got, expected, and the next step."""


class Writer:
    """Writes arrays as they come; the file appears when :meth:`close` has written the header. As a context it leaves nothing behind
    when the block ends with an error."""

    def __init__(self, path: str | Path):
        self.path, self.file = Path(path), atomic_file(path, "wb")
        self.zip, self.there, self.entries = zipfile.ZipFile(self.file.__enter__(), "w", zipfile.ZIP_STORED), set(), []
        self.half = "vision"  # of a model that sees and speaks; "language" is the other

    def add(self, kind: str, name: str, torch32: Mapping, truth: Mapping, inputs: Mapping | None = None, **more) -> None:
        """One comparison: ``kind`` is "case", "start" or "chain" (parity/check.py)."""
        arrays = {"inputs": inputs or {}, "torch32": torch32, "truth": truth}
        stored = {group: {key: self.store(value) for key, value in values.items()} for group, values in arrays.items()}
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
            with contextlib.suppress(OSError, ValueError):      # its end may not fit on the disk either
                self.zip.close()
            self.file.__exit__(kind, error, trace)


class DumpFile:
    """Reads a dump, array by array. Raises FileNotFoundError, or :class:`DumpError` for a file that is damaged or something else."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no dump at {path}: make one with python -m parity dump on a host with torch, and copy it here")
        try:
            self.arrays = np.load(self.path, allow_pickle=False)
            names = set(self.arrays.files)
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, AttributeError) as error:
            raise DumpError(self.damaged(error)) from None
        if HEADER not in names:
            raise DumpError(f"{path} is no parity dump: it has no header. Make one with python -m parity dump")
        self.header = self.read_header()
        missing = {name for entry in self.entries for group in ("inputs", "torch32", "truth") for name in entry[group].values()} - names
        if missing:
            raise DumpError(f"{path} is incomplete: {len(missing)} arrays of its header are missing. Dump again")

    def read_header(self) -> dict:
        try:
            header = json.loads(self[HEADER].tobytes())
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DumpError(self.damaged(error)) from None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            found = header.get("format") if isinstance(header, dict) else type(header).__name__
            raise DumpError(f"{self.path} has format {found!r}, expected {FORMAT!r}: dump again with this version of parity")
        return header

    @property
    def entries(self) -> list[dict]:
        """All comparisons, in the order of the network."""
        return self.header["entries"]

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self.arrays[name]
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, KeyError) as error:
            raise DumpError(self.damaged(error)) from None

    def group(self, entry: dict, group: str) -> dict[str, np.ndarray]:
        """"inputs", "torch32" or "truth" of an entry."""
        return {key: self[name] for key, name in entry[group].items()}

    def damaged(self, error: Exception) -> str:
        first = (str(error).splitlines() or [""])[0]
        return (f"{self.path} is damaged, truncated or no parity dump ({self.path.stat().st_size:,} bytes): "
                f"{type(error).__name__} {first[:120]}. Copy it again and compare the size")
