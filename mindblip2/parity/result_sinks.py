"""What becomes of the comparisons that a stream hands over: they are compared at once, or written down for
another host."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mindblip2.config.schema import ConfigError
from mindblip2.file_io import atomic_file, read_text, write_text
from mindblip2.parity.compare import Row, row_of
from mindblip2.parity.dump_file import Arrays, Writer
from mindblip2.parity.model_triple import Case, ModelTriple, judge
from mindblip2.parity.reference.outputs import rows, run_theirs
from mindblip2.parity.selection import Selection


class ComparingSink:
    """Compares at once. With a ``progress`` what was compared is remembered, so that a run that was stopped
    goes on."""

    def __init__(self, selection: Selection | None = None, progress: "Progress | None" = None):
        self.selection, self.progress = selection or Selection(), progress
        self.fingerprints: dict[str, int] = {}  # of the weights that were used

    def case(self, case: Case, nets: ModelTriple) -> list[Row]:
        """The rows of an isolated case."""
        wanted = self.selection.of(case)
        if wanted is None:
            return []
        return self.once(case.name, lambda: rows(wanted, nets))

    def chained(self, name: str, ours: Mapping, torch32: Mapping, truth: Mapping) -> list[Row]:
        """The rows of a place in a chain."""
        if not self.selection.chained:
            return []
        found = self.once(name, lambda: judge(name, ours, torch32, truth))
        return [row for row in found if self.selection.wants(row.name)]

    def start(self, name: str, inputs: Mapping) -> None:
        """What goes into a chain; another host would need it."""

    def once(self, name: str, make) -> list[Row]:
        """What ``make`` gives, or gave in the run that was stopped."""
        return self.progress.once(name, make) if self.progress else make()

    def chain(self) -> tuple[int, list[np.ndarray]]:
        """How many blocks are done, and the three sides behind them."""
        return self.progress.chain() if self.progress else (0, [])

    def leave(self, done: int, *sides: np.ndarray) -> None:
        """Remember where the chain is."""
        if self.progress:
            self.progress.leave(done, sides)

    def stored(self, name: str) -> list[Row]:
        """All rows of a block that was done before: of itself, of its parts, of its place in the chain."""
        return self.progress.below(name)


class Progress:
    """A folder with the rows so far, a line each time, and where the chain is. It belongs to one command:
    ``key`` says which."""

    def __init__(self, folder: str | Path, key: Mapping[str, object]):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lines, self.state, self.key = (
            self.folder / "rows.jsonl",
            self.folder / "chain.npz",
            self.folder / "run.json",
        )
        text = json.dumps(key, sort_keys=True)
        if (
            self.key.exists()
            and (other := read_text(self.key, "the progress of a run", f"remove {folder}")) != text
        ):
            raise ConfigError(
                f"{folder} holds the progress of another run ({other[:400]}): give another folder, or remove "
                "it"
            )
        write_text(self.key, text)
        self.rows = {}
        for number, line in enumerate(self.whole_lines(), 1):
            try:
                name, rows = self.parsed(line)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise ConfigError(
                    f"{self.lines} is damaged in line {number} ({type(error).__name__}): remove "
                    f"{self.folder}, or that line, "
                    "whose comparison is done again then"
                ) from None
            self.rows[name] = rows

    def whole_lines(self) -> list[str]:
        """The lines that were written to their end."""
        text = (
            read_text(self.lines, "the rows of a run", f"remove {self.folder}") if self.lines.exists() else ""
        )
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_text(self.lines, whole)
        return whole.splitlines()

    @staticmethod
    def parsed(line: str) -> tuple[str, list[Row]]:
        record = json.loads(line)
        return record["name"], [row_of(row) for row in record["rows"]]

    def once(self, name: str, make) -> list[Row]:
        if name not in self.rows:
            self.rows[name] = make()
            with open(self.lines, "a") as file:
                file.write(
                    json.dumps({"name": name, "rows": [asdict(row) for row in self.rows[name]]}) + "\n"
                )
        return self.rows[name]

    def below(self, name: str) -> list[Row]:
        names = (name, f"chained {name}")
        return [
            row
            for known, found in self.rows.items()
            if known in names or known.startswith(name + ".")
            for row in found
        ]

    def chain(self) -> tuple[int, list[np.ndarray]]:
        if not self.state.exists():
            return 0, []
        state = Arrays(self.state, advice=f"Remove {self.folder} and begin again")
        done, sides = state["done"], [state[name] for name in ("truth", "torch32", "ours")]
        if done.shape or done.dtype.kind != "i" or done < 0 or len({side.shape for side in sides}) > 1:
            raise ConfigError(f"{self.state} is damaged: remove {self.folder} and begin again")
        return int(done), sides

    def leave(self, done: int, sides) -> None:
        with atomic_file(self.state, "wb") as file:
            np.savez(file, done=done, **dict(zip(("truth", "torch32", "ours"), sides, strict=True)))


class WritingSink(ComparingSink):
    """Writes down what torch gives, and compares nothing."""

    def __init__(self, writer: Writer, selection: Selection | None = None):
        super().__init__(selection)
        self.writer = writer

    def case(self, case: Case, nets: ModelTriple) -> list[Row]:
        wanted = self.selection.of(case)
        if wanted is not None and not wanted.local:
            sides = run_theirs(wanted, nets.torch32), run_theirs(wanted, nets.truth)
            more = {
                name: getattr(wanted, name) for name in ("weights", "backward", "fixed", "stacked", "values")
            }
            self.writer.add("case", wanted.name, *sides, wanted.inputs, **more)
        return []

    def chained(self, name: str, ours: Mapping, torch32: Mapping, truth: Mapping) -> list[Row]:
        if self.selection.chained:
            self.writer.add("chain", name, torch32, truth)
        return []

    def start(self, name: str, inputs: Mapping) -> None:
        if self.selection.chained:
            self.writer.add("start", name, {}, {}, inputs)
