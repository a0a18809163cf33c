"""The noise-floor method: is our error as small as torch's own? Pure NumPy, so an NPU host needs no torch.

Each tensor comes in three versions: torch in float64 (the truth), torch in float32 (the noise) and ours in
float32:

    ratio = rms(ours32 - truth64) / rms(torch32 - truth64)

A faithful port rounds about as much as torch does: 1.3 to 2.3 times on a full-size Q-Former over several
seeds, where no fixed absolute bound held on every seed. A wrong eps, a tanh GELU, a missing mask or a
half-precision cast gives tens to millions. The same in float16 or bfloat16 on an NPU: then "32" stands for
torch in that dtype. NumPy has no bfloat16; such values come as float32.

The other figures of a row are those that Ascend's own accuracy tools print; they inform, the ratio decides.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mindblip2 import file_io
from mindblip2.parity.report.error_pattern import error_pattern

PASS, LOOK = 4.0, 10.0  # up to PASS it passes, up to LOOK somebody should look, above it fails
NEAR = 1e-3  # "within one thousandth" of the truth, element by element
HEAD = ("verdict", "ratio", "rel. frobenius", "max abs", "cosine", "in 1/1000", "name")


def rms(x: np.ndarray) -> float:
    """Root mean square over the whole tensor; 0 for an empty one."""
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0


def noise_ratio(ours32: np.ndarray, torch32: np.ndarray, truth64: np.ndarray) -> float:
    """rms(ours32 - truth64) / rms(torch32 - truth64); infinite if ours is not finite.

    The divisor is never below the rounding of the truth itself to torch's dtype, else a torch result that
    happens to be exact (a copy, one lucky scalar) would fail any port. A single number has no statistics: put
    the losses of several batches into one array.
    """
    same_shape(ours32, torch32, truth64)
    if not np.isfinite(truth64).all() or not np.isfinite(torch32).all():
        raise ValueError("the reference itself is not finite: no parity can be decided against it")
    truth = wide(truth64)
    error, noise = rms(wide(ours32) - truth), rms(wide(torch32) - truth)
    floor = max(noise, rms(wide(truth.astype(torch32.dtype)) - truth))
    if not math.isfinite(error):
        return math.inf
    if floor == 0:  # the truth is exact in torch's dtype, as zeros and small integers are, and torch met it
        return 0.0 if error == 0 else math.inf
    return error / floor


def wide(x: np.ndarray) -> np.ndarray:
    """float64, in which all differences are taken."""
    return np.asarray(x).astype(np.float64)


def same_shape(ours32: np.ndarray, torch32: np.ndarray, truth64: np.ndarray) -> None:
    """Raise unless the three agree: broadcasting would compare the wrong elements."""
    if not ours32.shape == torch32.shape == truth64.shape:
        raise ValueError(f"shapes differ: ours {ours32.shape}, torch {torch32.shape}, truth {truth64.shape}")


@dataclass(frozen=True)
class Row:
    """One compared tensor. Apart from ``ratio`` all figures compare ours with the truth."""

    name: str
    ratio: float
    rel_frobenius: float  # |ours - truth| / |truth|
    max_abs: float
    cosine: float
    within_1000th: float  # share of elements within 1/1000 of the true element
    # what the error looks like, where it does not pass (mindblip2/parity/report/error_pattern.py)
    signature: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """ "pass", "look" or "fail"; a ratio that is no number fails."""
        if self.ratio <= PASS:
            return "pass"
        return "look" if self.ratio <= LOOK else "fail"


def row_of(record: Mapping) -> Row:
    """A row as it was; JSON knows no infinity, so null is one where a number is missing. Raises TypeError or
    KeyError where the record is none of a row."""
    values = {
        key: math.inf if value is None else value
        for key, value in record.items()
        if key not in ("verdict", "signature")
    }
    numbers = [value for key, value in values.items() if key != "name"]
    if not isinstance(values.get("name"), str) or not all(
        isinstance(value, int | float) for value in numbers
    ):
        raise TypeError("a row has a name and numbers")
    return Row(**values, signature=tuple(map(str, record.get("signature", ()))))


def compare(name: str, ours32: np.ndarray, torch32: np.ndarray, truth64: np.ndarray) -> Row:
    """All figures of one tensor."""
    ours32, torch32, truth64 = np.asarray(ours32), np.asarray(torch32), np.asarray(truth64)
    ratio = noise_ratio(ours32, torch32, truth64)
    ours, truth = wide(ours32).ravel(), wide(truth64).ravel()
    error = np.abs(ours - truth)
    return Row(
        name,
        ratio,
        rel_frobenius=share(np.linalg.norm(error), np.linalg.norm(truth)),
        max_abs=float(error.max(initial=0)),
        cosine=cosine(ours, truth),
        within_1000th=float(np.mean(error <= NEAR * np.abs(truth))) if error.size else 1.0,
        signature=() if ratio <= PASS else error_pattern(ours32, truth64),
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of the angle between two vectors; of two zero vectors 1, of one 0; nan if there is an inf or
    nan."""
    norms = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if norms == 0:
        return float(not a.any() and not b.any())
    return float(a @ b) / norms if math.isfinite(norms) else math.nan


def share(part: float, whole: float) -> float:
    """part / whole, where nothing of nothing is 0."""
    if whole:
        return float(part / whole)
    return 0.0 if part == 0 else math.inf


def compare_all(
    ours32: Mapping[str, np.ndarray], torch32: Mapping[str, np.ndarray], truth64: Mapping[str, np.ndarray]
) -> list[Row]:
    """A row for every name, in the order of ``truth64``, that of the network; all three must have the same
    names."""
    names = [set(ours32), set(torch32), set(truth64)]
    if not names[0] == names[1] == names[2]:
        partial = sorted(set.union(*names) - set.intersection(*names))
        raise ValueError(f"compared sets differ: {partial} are not in all of ours, torch and truth")
    return [compare(name, ours32[name], torch32[name], truth64[name]) for name in truth64]


def all_pass(rows: Iterable[Row]) -> bool:
    """Whether there is a row and every row passes: what an exit code 0 says."""
    rows = list(rows)
    return bool(rows) and all(row.verdict == "pass" for row in rows)


def failing(rows: Mapping[str, Iterable[Row]]) -> set[str]:
    """Names of the cases with a row that fails."""
    return {name for name, found in rows.items() if any(row.verdict == "fail" for row in found)}


def not_passing(rows: Mapping[str, Iterable[Row]]) -> set[str]:
    """Names of the cases that do not pass: a row fails, or somebody should look."""
    return {name for name, found in rows.items() if not all_pass(found)}


def first_bad(rows: Iterable[Row]) -> Row | None:
    """The first row that does not pass. In a chained run that is where the networks part."""
    return next((row for row in rows if row.verdict != "pass"), None)


def table(rows: Iterable[Row]) -> str:
    """Rows as aligned text, one line each, the name last because its length varies."""
    lines = [HEAD] + [
        (
            row.verdict,
            f"{row.ratio:.3g}",
            f"{row.rel_frobenius:.2e}",
            f"{row.max_abs:.2e}",
            f"{row.cosine:.9f}",
            f"{row.within_1000th:.2%}",
            row.name,
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def write_json(
    path: str | Path,
    rows: Iterable[Row],
    about: Mapping[str, object] | None = None,
    diagnosis: Mapping | None = None,
) -> None:
    """``{"pass": …, "about": {…}, "diagnosis": null or {…}, "rows": […]}``; numbers that JSON does not know
    (inf, nan) become null."""
    rows = list(rows)
    records = [
        {"verdict": row.verdict} | {key: known(value) for key, value in asdict(row).items()} for row in rows
    ]
    document = {
        "pass": all_pass(rows),
        "limits": {"pass": PASS, "look": LOOK},
        "about": dict(about or {}),
        "diagnosis": diagnosis,
        "rows": records,
    }
    file_io.write_json(path, document)


def known(value: object) -> object:
    """The value, or None for a float that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
