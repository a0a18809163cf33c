"""C11: files, functions and notes that docs, comments and docstrings name are there."""

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mindblip2", "convert", "parity", "benchmarks", "tests", "configs", "docs")
FOLDERS = (ROOT, ROOT / "mindblip2", ROOT / "mindblip2" / "models")  # names are relative to one of them
FILE = re.compile(r"(?<![\w/.:-])((?:[\w.-]+/)+[\w-]+\.(?:py|md|yaml))\b")
DOTTED = re.compile(r"(?<![\w/.])((?:mindblip2|convert|parity)(?:\.\w+)+)\b(?!\.\w)(?!/)")
PRIVATE = re.compile(r"\bfacts(?:\.md)?,? D-\d+|\bD-\d\d\b")  # numbers of a list that is not in the project
# Files of other projects, or that a user makes; each is named in a sentence that says so.
FOREIGN = re.compile(
    r"^(?:lavis|LAVIS|transformers|mindformers|research|site-packages|tiny|output|my|path|sub|folder|processors)/"
)


NAME = re.compile(r"``([A-Za-z]\w*_\w+)(?:\(\))?``")
# functions and keys of LAVIS
LAVIS_S = {"interpolate_pos_embed", "concat_all_gather", "lr_layer_decay", "compute_itm"}
EXAMPLES = {"step_0000100", "query_BQ"}


def texts(path: Path) -> list[tuple[int, str]]:
    """(line, text) of a Markdown file, or of the comments and docstrings of a Python file."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return list(enumerate(source.splitlines(), 1))
    found = [
        (token.start[0], token.string)
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            found.append((node.body[0].lineno, ast.get_docstring(node)))
    return found


def stale(text: str, known: set[str] | None = None) -> list[str]:
    """What a text names that is not there; ``known``: all names of the project."""
    found = [
        name
        for name in FILE.findall(text)
        if not FOREIGN.match(name)
        and name.split("/")[0] in known_folders()
        and not any((folder / name).exists() for folder in FOLDERS)
    ]
    unknown = (
        [name for name in NAME.findall(text) if name not in known | LAVIS_S | EXAMPLES]
        if known is not None
        else []
    )
    return (
        found + [name for name in DOTTED.findall(text) if not there(name)] + PRIVATE.findall(text) + unknown
    )


def identifiers() -> set[str]:
    """Every name in the code, the configurations and the texts of the code, without comments and
    docstrings."""
    found = set()
    for path in FILES:
        source = path.read_text(encoding="utf-8")
        if path.suffix == ".yaml":
            found |= set(re.findall(r"\w+", source))
        elif path.suffix == ".py":
            for token in tokenize.generate_tokens(io.StringIO(source).readline):
                if token.type == tokenize.NAME:
                    found.add(token.string)
                elif token.type == tokenize.STRING and not token.string.startswith('"""'):
                    found |= set(re.findall(r"\w+", token.string))
    return found


@cache
def known_folders() -> frozenset:
    return frozenset(one.name for folder in FOLDERS for one in folder.iterdir() if one.is_dir())


@cache
def there(name: str) -> bool:
    """Is a dotted name a module, or something that is defined in one?"""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:length])
        module = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        if module.is_file() and length > 1 or base.is_dir() and length == len(parts):
            return length == len(parts) or parts[length] in defined(module)
        if module.is_file():
            return parts[length] in defined(module) | {"py", "md", "ckpt", "yaml"}
    return False


@cache
def defined(module: Path) -> set[str]:
    """Every name that a module binds, or lists for a lazy import."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found.add(node.value)
    return found


FILES = sorted(
    path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*")
    if path.suffix in (".py", ".md", ".yaml")
    and not path.name.startswith("parity_")
    and "reference" not in path.parts
)


def test_c11_what_is_named_is_there():
    known = identifiers()
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in FILES
        if path != Path(__file__)
        for line, text in texts(path)
        for name in stale(text, known if path.suffix == ".py" else None)
    ]
    assert found == []


@pytest.mark.parametrize(
    "text, names",
    [
        ("see parity/dump.py", ["parity/dump.py"]),
        ("as ``parity.dumping`` does", ["parity.dumping"]),
        ("facts D-15", ["facts D-15"]),
        ("mindblip2.parity.compare.no_such_function", ["mindblip2.parity.compare.no_such_function"]),
        (
            "mindblip2/parity/run.py, mindblip2.parity.compare.rms, mindblip2.pipeline, models/vit.py and "
            "lavis/models/x.py",
            [],
        ),
    ],
)
def test_c11_the_control(text, names):
    assert stale(text) == names


def test_c11_the_control_of_names():
    assert stale("``tower_cases`` and ``noise_ratio`` and ``interpolate_pos_embed``", {"noise_ratio"}) == [
        "tower_cases"
    ]
