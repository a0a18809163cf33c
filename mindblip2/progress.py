"""How far a long task has come: a bar on a terminal; in a file or a pipe, plain lines at intervals instead of
carriage returns."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

INTERVAL = 30.0  # seconds between two lines of a log


def progress(
    items: Iterable | None = None,
    desc: str = "",
    unit: str = "",
    total: int | None = None,
    initial: int = 0,
    leave: bool | None = True,
    disable: bool = False,
) -> "tqdm | ProgressLines":
    """Iterates over ``items``, or counts by ``update``, and shows it on standard error: ``tqdm`` on a
    terminal, elsewhere a line every ``INTERVAL`` seconds, so that what takes less leaves no line.
    ``disable``: shows nothing."""
    if sys.stderr.isatty() or disable:
        return tqdm(
            items, desc, total, leave, initial=initial, unit=unit, disable=disable, dynamic_ncols=True
        )
    if total is None and hasattr(items, "__len__"):
        total = len(items)  # type: ignore[arg-type]  # it has a length
    return ProgressLines(items, desc, unit, total, initial)


class ProgressLines:
    """What this project uses of ``tqdm``'s surface, in lines: ``train: step 120 of 400 (30%), 02:00, about
    04:40 left; itc 1.2``."""

    def __init__(self, items: Iterable | None, desc: str, unit: str, total: int | None, initial: int):
        self.items, self.desc, self.unit, self.total, self.initial, self.n = (
            items,
            desc,
            unit,
            total,
            initial,
            initial,
        )
        self.start = self.last = time.monotonic()
        self.shown: int | None = None
        self.postfix = ""

    def __iter__(self) -> Iterator[Any]:
        try:
            for item in () if self.items is None else self.items:
                yield item
                self.update()
        finally:
            self.close()

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        self.n += n
        if time.monotonic() - self.last >= INTERVAL:
            self._show()

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """What the next line ends with."""
        self.postfix = text

    def close(self) -> None:
        """The last line, where there were others and it says something new."""
        if self.shown not in (None, self.n):
            self._show()

    def _show(self) -> None:
        self.last, self.shown = time.monotonic(), self.n
        seconds, made = self.last - self.start, self.n - self.initial
        of_total = f" of {self.total} ({self.n / self.total:.0%})" if self.total else ""
        parts = [f"{self.desc}: {self.unit} {self.n}{of_total}", tqdm.format_interval(seconds)]
        if self.total and made and self.n < self.total:
            parts.append(f"about {tqdm.format_interval(seconds / made * (self.total - self.n))} left")
        print(", ".join(parts) + (f"; {self.postfix}" if self.postfix else ""), file=sys.stderr, flush=True)
