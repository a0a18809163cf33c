"""Where the time of a run goes: a line on stderr when a phase ends, with its seconds, and the sums at the end
of the run."""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

seconds: dict[str, float] = defaultdict(float)  # of each side, over all cases


def say(text: str) -> None:
    """A line on stderr at once, so that a pipe shows it too."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Print how long the block took."""
    start = time.monotonic()
    yield
    say(f"{name}: {time.monotonic() - start:.1f} s")


@contextmanager
def side(name: str) -> Iterator[None]:
    """Add the time of the block to that of a side."""
    start = time.monotonic()
    try:
        yield
    finally:
        seconds[name] += time.monotonic() - start


def sums() -> str:
    """The seconds of all sides, as a line; they begin at 0 again."""
    found = ", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
    seconds.clear()
    return f"of this: {found}" if found else ""
