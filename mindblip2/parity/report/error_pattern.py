"""What an error looks like: facts about ours - truth that tell one kind of defect from another. Words, in the
order of their weight."""

import numpy as np

MOST, ALMOST_ALL = 0.9, 0.999  # shares of the error's energy


def error_pattern(ours: np.ndarray, truth: np.ndarray) -> tuple[str, ...]:
    """Facts about the error of one tensor; none if it is spread evenly and looks like nothing known."""
    ours, truth = np.asarray(ours).astype(np.float64), np.asarray(truth).astype(np.float64)
    if ours.size < 2 or not np.isfinite(truth).all():
        return ()
    if not np.isfinite(ours).all():
        return (not_finite(ours),)
    if not ours.any():
        return ("all zeros",)
    error = ours - truth
    found = [
        shifted(ours, truth),
        rounded(ours, truth),
        constant(error),
        scaled(ours, truth),
        *(places(error)),
    ]
    return tuple(fact for fact in found if fact)


def not_finite(ours: np.ndarray) -> str:
    count = int((~np.isfinite(ours)).sum())
    return f"{count} of {ours.size} values are not finite"


def constant(error: np.ndarray) -> str:
    """The same amount everywhere?"""
    mean, size = error.mean(), np.sqrt(np.mean(error**2))
    return f"constant offset {mean:+.2e}" if size and abs(mean) > MOST * size else ""


def scaled(ours: np.ndarray, truth: np.ndarray) -> str:
    """Ours = c · truth?"""
    energy = float((truth**2).sum())
    if not energy:
        return ""
    factor = float((ours * truth).sum()) / energy
    rest, error = ((ours - factor * truth) ** 2).sum(), ((ours - truth) ** 2).sum()
    return f"constant factor {factor:.6g}" if error and rest < (1 - MOST) ** 2 * error else ""


def rounded(ours: np.ndarray, truth: np.ndarray) -> str:
    """Values that float16 or bfloat16 hold exactly, where the truth's are not such."""
    bits = ours.astype(np.float32).view(np.uint32)
    if not (bits & 0xFFFF).any() and (truth.astype(np.float32).view(np.uint32) & 0xFFFF).any():
        return "rounded to bfloat16"  # asked first: in the range of float16 its values are float16's too
    if np.array_equal(ours, ours.astype(np.float16)) and not np.array_equal(truth, truth.astype(np.float16)):
        return "rounded to float16"
    size = np.sqrt(((ours - truth) ** 2).mean() / max((truth**2).mean(), 1e-300))
    return "as large as half-precision rounding" if 5e-5 < size < 3e-3 else ""


def shifted(ours: np.ndarray, truth: np.ndarray) -> str:
    """The truth's numbers, but one place further along an axis, or along the last axis in another order."""
    size = np.sqrt((truth**2).mean())
    bound = 1e-3 * size
    if np.sqrt(((ours - truth) ** 2).mean()) < 0.1 * size:
        return ""  # numbers that are where they belong
    for axis in range(truth.ndim):
        if truth.shape[axis] > 2:
            for step in (1, -1):
                inner = np.take(
                    np.abs(np.roll(truth, step, axis) - ours), range(1, truth.shape[axis] - 1), axis
                )
                if inner.max() < bound:
                    return f"shifted by {step:+d} along axis {axis}"
    same = np.abs(np.sort(ours, -1) - np.sort(truth, -1)).max() < bound
    return "the right numbers in another order along the last axis" if same else ""


def places(error: np.ndarray) -> list[str]:
    """Where nearly all of the error is, if that is less than half of an axis."""
    found, energy = [], error**2
    for axis in range(error.ndim):
        count = error.shape[axis]
        along = energy.sum(tuple(other for other in range(error.ndim) if other != axis))
        order = np.argsort(-along)
        needed = 1 + int(np.searchsorted(np.cumsum(along[order]), ALMOST_ALL * along.sum()))
        if count > 2 and needed <= count / 2:
            found.append(
                f"only at {ranges(sorted(order[:needed]))} of {count} along axis {axis} {meaning(error.ndim, axis)}".rstrip()
            )
    return found


def meaning(ndim: int, axis: int) -> str:
    """What an axis usually is."""
    names = {
        (3, 0): "(batch)",
        (3, 1): "(positions: pads, or one end of the text?)",
        (3, 2): "(channels: one head?)",
        (4, 0): "(batch)",
        (4, 1): "(heads)",
        (4, 2): "(positions)",
        (4, 3): "(channels of a head)",
        (2, 1): "(channels)",
    }
    return names.get((ndim, axis), "")


def ranges(numbers: list[int]) -> str:
    """2-5, 7, 9-11, …"""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    said = [str(a) if a == b else f"{a}-{b}" for a, b in runs]
    return ", ".join(said[:4]) + (", …" if len(said) > 4 else "")
