"""What a run leaves: a table in the terminal, a JSON with every row, a dated Markdown page. The page for
people is mindblip2/parity/report/page.py."""

import os
import platform
import re
import resource
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mindblip2.file_io import write_text
from mindblip2.parity.compare import Row, all_pass, table, write_json
from mindblip2.parity.report.diagnosis import Diagnosis

HEAD = ("verdict", "worst ratio", "median", "rows", "cases")


def about(command: str, seconds: float, **more: object) -> dict[str, object]:
    """Date, hardware, versions, command: what a measured number carries."""
    return (
        {
            "date": date.today().isoformat(),
            "command": command,
            "seconds": round(seconds),
            "peak memory GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
            "hardware": hardware(),
            "python": platform.python_version(),
        }
        | {name: installed(name) for name in ("mindspore", "torch", "numpy")}
        | more
    )


def installed(package: str) -> str:
    """Its version; a host that only checks has no torch."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def hardware() -> str:
    """Processor, cores and memory."""
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.*)$", cpu.read_text(), re.MULTILINE) if cpu.exists() else []
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GB"


def grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by what they compare: the layer's number, the parameter, and which part of a layer it is left
    out."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        kind, _, gradient = row.name.partition(" d ")
        kind = re.sub(r"\b(layers?|blocks)\.\d+", r"\1.*", kind.strip())
        kind = re.sub(r"\.\*\.\S+", ".* parts", kind)
        kind = re.sub(r"(\.| )\d+$", "", kind)  # the number of an output, or of a memory
        groups.setdefault(kind + (" (gradients)" if gradient else ""), []).append(row)
    return groups


def summary(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """A line per group, headed."""
    lines = [HEAD]
    for name, members in grouped(rows).items():
        ratios = sorted(row.ratio for row in members)
        worst = max(members, key=lambda row: row.ratio)
        lines.append(
            (worst.verdict, f"{ratios[-1]:.3g}", f"{ratios[len(ratios) // 2]:.3g}", str(len(members)), name)
        )
    return lines


def terminal(rows: list[Row]) -> str:
    """The summary, then every row that does not pass, then the verdict."""
    lines = summary(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
    odd = [row for row in rows if row.verdict != "pass"]
    return "\n\n".join([text, *([table(odd)] if odd else []), verdict(rows)])


def verdict(rows: list[Row]) -> str:
    """One line: how many rows, how many pass, the worst."""
    if not rows:
        return "nothing was compared"
    worst = max(rows, key=lambda row: row.ratio)
    passed = sum(row.verdict == "pass" for row in rows)
    word = "PASS" if all_pass(rows) else "FAIL" if any(row.verdict == "fail" for row in rows) else "LOOK"
    return (
        f"{word}: {passed} of {len(rows)} rows pass; worst ratio {worst.ratio:.3g} "
        f"({worst.name}), median {sorted(row.ratio for row in rows)[len(rows) // 2]:.3g}"
    )


def write(
    path: str | Path, rows: list[Row], facts: Mapping[str, object], found: Diagnosis | None = None
) -> None:
    """``path`` as JSON and a Markdown page of the same name beside it."""
    path = Path(path)
    write_json(path, rows, facts, asdict(found) if found else None)
    lines = summary(rows)
    body = [
        "# Parity with PyTorch, " + str(facts["date"]),
        "",
        *(f"- {name}: {value}" for name, value in facts.items() if name not in ("date", "command", "curves")),
        "",
        "```",
        str(facts["command"]),
        "```",
        "",
        verdict(rows),
        "",
        "Ratio: rms(ours32 - truth64) / rms(torch32 - truth64); up to 4 passes "
        "(mindblip2/parity/compare.py). "
        f"All rows: [{path.name}]({path.name}).",
        "",
        "| " + " | ".join(lines[0]) + " |",
        "|" + "---|" * len(lines[0]),
    ]
    body += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines[1:]]
    write_text(path.with_suffix(".md"), "\n".join(body) + "\n")
