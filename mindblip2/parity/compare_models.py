"""Do two files hold the same model? Names, shapes and values, tensor by tensor, whatever format and names
they have.

Each side is brought to our names by the converter's tables (mindblip2/convert/name_maps/blip2.py,
mindblip2/convert/tensor_transforms.py): a LAVIS .pth and its .ckpt are compared without writing a file.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError
from mindblip2.convert.detect import detect
from mindblip2.convert.name_maps.blip2 import source_name
from mindblip2.convert.name_maps.language_models import PREFIXES
from mindblip2.convert.readers.files import read_state_dict
from mindblip2.convert.readers.lazy_state_dict import shape_of
from mindblip2.convert.tensor_transforms import find_transform

SHOWN = 8  # names of a kind of difference


@dataclass
class Difference:
    """What was found, by kind: names of tensors."""

    same: int = 0
    # equal once one side is rounded to that dtype
    rounded: dict[str, list[str]] = field(default_factory=dict)
    other: list[str] = field(default_factory=list)  # name and by how much
    shapes: list[str] = field(default_factory=list)
    only: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))


def compared(first: str, second: str) -> tuple[str, bool]:
    """A few lines for people, and whether the two hold the same model to the last bit."""
    sides = [opened(path) for path in (first, second)]
    found = Difference()
    if all(side.ours for side in sides) or not any(side.ours for side in sides):
        compare_names(found, *sides)
    else:
        compare_planned(found, *sorted(sides, key=lambda side: side.ours))
        if sides[0].ours:
            found.only = found.only[::-1]
    whole = not (found.rounded or found.other or found.shapes or any(found.only))
    return "\n".join(lines(found, first, second, whole)), whole


@dataclass(frozen=True)
class Side:
    """A file: a mapping from name to tensor, and whether the names are ours."""

    path: str
    state: object
    ours: bool

    def array(self, name: str) -> np.ndarray:
        """float32; a float16 or bfloat16 tensor is widened, which loses nothing."""
        return (
            np.asarray(self.state.float32(name))
            if self.ours
            else np.asarray(self.state[name].float().numpy())
        )


def opened(path: str) -> Side:
    """A .ckpt of ours, or any foreign file that the converter reads."""
    if str(path).endswith(".ckpt"):
        stored = Checkpoint(path)
        if any(
            name.startswith(("vit.", "qformer.", "ln_vision.", "llm.")) and "dense1" not in name
            for name in stored
        ):
            return Side(str(path), stored, True)
    return Side(str(path), read_state_dict(path), False)


def compare_names(found: Difference, a: Side, b: Side) -> None:
    """Two files of the same names."""
    names = [name for name in a.state if name in b.state]
    found.only = (
        [name for name in a.state if name not in b.state],
        [name for name in b.state if name not in a.state],
    )
    for name in names:
        judge(found, name, a.array(name), b.array(name))


def compare_planned(found: Difference, theirs: Side, ours: Side) -> None:
    """A foreign file and one of ours: each of our tensors beside what the converter makes of theirs."""
    source, freq, used = detect(theirs.state, theirs.path), cross_attention_freq(ours.state), set()
    if source.interleaved:
        raise CheckpointError(
            f"{theirs.path} is Meta's file, whose rotary pairs lie otherwise: compare with transformers' "
            "files"
        )
    for name, shape in ours.state.shapes.items():
        origin = source_name(source, name, freq)
        origin = next(
            (prefix + origin for prefix in PREFIXES if origin and prefix + origin in theirs.state), None
        )
        if origin is None:
            found.only[1].append(name)
            continue
        used.add(origin)
        change = find_transform(source, name, origin, shape_of(theirs.state, origin), tuple(shape))
        if change is None:
            found.shapes.append(f"{name}: {shape_of(theirs.state, origin)} as {origin}, and {tuple(shape)}")
            continue
        value = theirs.state[origin]
        judge(found, name, (change[1](value) if change[1] else value).float().numpy(), ours.array(name))
    found.only[0].extend(
        name
        for name in theirs.state
        if name not in used
        and name not in source.tied
        and not any(re.search(mark, name) for mark, _ in source.known)
    )


def cross_attention_freq(stored: Checkpoint) -> int:
    """Every how many layers the Q-Former sees the image."""
    layers = sorted({int(name.split(".")[3]) for name in stored if ".cross_attention." in name})
    return layers[1] - layers[0] if len(layers) > 1 else 2


def judge(found: Difference, name: str, a: np.ndarray, b: np.ndarray) -> None:
    """Put a tensor under what it is."""
    if a.shape != b.shape:
        found.shapes.append(f"{name}: {a.shape} and {b.shape}")
    elif np.array_equal(a, b):
        found.same += 1
    elif kind := rounding(a, b):
        found.rounded.setdefault(kind, []).append(name)
    else:
        size = float(np.sqrt(np.mean(np.square(a, dtype=np.float64)))) or 1.0
        gap = np.abs(a.astype(np.float64) - b)
        found.other.append(
            f"{name}: rms {np.sqrt(np.mean(gap**2)) / size:.2e} of the values, most {gap.max():.2e} at "
            f"{tuple(int(i) for i in np.unravel_index(gap.argmax(), gap.shape))}"
        )


def rounding(a: np.ndarray, b: np.ndarray) -> str:
    """The dtype to which one side was rounded, if that is the whole difference."""
    for one, other in ((a, b), (b, a)):
        if np.array_equal(one.astype(np.float16).astype(np.float32), other):
            return "float16"
        if np.array_equal(to_bfloat16(one), other):
            return "bfloat16"
    return ""


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded to the nearest, ties to even, and back."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return (
        (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    ).view(np.float32)


def lines(found: Difference, first: str, second: str, whole: bool) -> Iterator[str]:
    """What is said of a difference."""
    yield f"{found.same} tensors are equal to the last bit"
    for kind, names in found.rounded.items():
        yield f"{len(names)} are equal but for rounding to {kind}: {few(names)}"
    for title, names in (
        ("differ", found.other),
        ("have other shapes", found.shapes),
        (f"are only in {first}", found.only[0]),
        (f"are only in {second}", found.only[1]),
    ):
        if names:
            yield f"{len(names)} {title}: {few(names)}"
    yield (
        "SAME: both files hold the same model"
        if whole
        else (
            "SAME BUT FOR ROUNDING" if not (found.other or found.shapes or any(found.only)) else "DIFFERENT"
        )
    )


def few(names: list[str]) -> str:
    return "; ".join(names[:SHOWN]) + ("; …" if len(names) > SHOWN else "")
