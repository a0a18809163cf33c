"""Which comparisons of a run are wanted: patterns of names, as in a shell, and one of the ways to compare."""

import dataclasses
import fnmatch
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # MindSpore takes seconds to import
    from mindblip2.parity.model_triple import Case

CHAINED = "chained"  # begins the names of rows whose errors add up
MODES = (CHAINED, "isolated", "gradients")


@dataclass(frozen=True)
class Selection:
    """``patterns``: none means all. ``mode``: chained, isolated (forward only), gradients, or None for all
    three."""

    patterns: tuple[str, ...] = ()
    mode: str | None = None

    def wants(self, name: str) -> bool:
        """Does a pattern mean this name?"""
        return not self.patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)

    @property
    def chained(self) -> bool:
        """Do networks have to run end to end?"""
        return self.mode in (None, CHAINED)

    def of(self, case: "Case") -> "Case | None":
        """What is wanted of a case, or None."""
        if self.mode == CHAINED or not self.wants(case.name):
            return None
        if self.mode == "isolated":
            return dataclasses.replace(case, backward=False) if case.values else None
        if self.mode == "gradients":
            return dataclasses.replace(case, values=False) if case.backward else None
        return case
