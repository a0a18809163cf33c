"""Seeded mutations of bytes and of JSON values."""

import copy
import json
import random
from collections.abc import Iterator

NUMBERS = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x00\x00\x00\x80",
    b"\xff" * 8,
    b"\xff" * 7 + b"\x7f",
    b"\x00" * 8,
)
DIGITS = (b"-1", b"0", b"1e999", b"NaN", b"99999999999999999999", b"null", b'""', b"[]", b"{}", b"true")
VALUES = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e308,
    "",
    "x",
    "4",
    "\x00",
    "\u202e",
    "../../x",
    "/etc/passwd",
    "x" * 5000,
    [],
    [1],
    ["a"],
    [[1]],
    {},
    {"a": 1},
    {"": None},
)
# of nested lists: more than any parser follows, also where MindSpore has raised the limit of recursion
DEPTH = 30_000


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """``data`` with one to three changes: bits, bytes, numbers, and runs that are cut, doubled, moved, zeroed
    or inserted."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        size = rng.choice((1, 2, 4, 8, 16, 64, 256))
        change = rng.randrange(10)
        if change == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif change == 2:
            number = rng.choice(NUMBERS)
            data[at : at + len(number)] = number
        elif change == 3:
            del data[at:]
        elif change == 4:
            del data[at : at + size]
        elif change == 5:
            data[at:at] = data[at : at + size]
        elif change == 6:
            data[at : at + size] = bytes(min(size, len(data) - at))
        elif change == 7:
            data[at:at] = rng.randbytes(size)
        elif change == 8:
            data[at:at] = rng.choice(DIGITS)
        elif change == 9:
            start = rng.randrange(len(data) + 1)
            data[at:at] = data[start : start + size]
    return bytes(data)


def mutated_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON text with one to three of its values replaced, removed, renamed or doubled; now and then one
    nested too deeply."""
    if not rng.randrange(50):
        return b"[" * DEPTH + b"]" * DEPTH
    value = copy.deepcopy(json.loads(data))
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            break
        owner, key = rng.choice(places)
        change = rng.randrange(6)
        if change == 0:
            del owner[key]
        elif change == 1 and isinstance(owner, dict):
            owner[rng.choice(("", "x", key + "x", "type"))] = owner.pop(key)
        elif change == 2 and isinstance(owner, list):
            owner.insert(key, copy.deepcopy(owner[key]))
        else:
            owner[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(value).encode()


def _places(value) -> Iterator[tuple]:
    """(container, key or index) of every value within ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)
