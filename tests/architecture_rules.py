"""Rules of the architecture (CONTRIBUTING.md) that no linter checks: functions from the text of a file to a
list of complaints.

Which package may import which is checked by import-linter (pyproject.toml). tests/test_architecture_rules.py
applies both, and shows for each rule that a violation is reported.
"""

import ast
import difflib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

MACHINE_PATH = re.compile(r"(?<![\w.:/}~$-])/(?:work|root|home|Users|opt)/\w|\b[A-Z]:\\+Users\b")
CODE = ("", "bash", "sh", "shell", "console", "python")  # fenced blocks that a reader may copy


# ------------------------------------------------------------------------------------------------ imports
def data_complaints(source, file):
    """Modules of mindblip2/data that use more of MindSpore than its data sets and tensors; import-linter
    knows packages of other projects only as wholes."""
    package = file.removesuffix(".py").rpartition("/")[0].replace("/", ".")
    return [
        f"{file}:{line}: data imports {name}"
        for line, name in foreign_imports(ast.walk(ast.parse(source)), package)
        if within(name, "mindspore")
        and not any(within(name, allowed) for allowed in ("mindspore.dataset", "mindspore.Tensor"))
    ]


def eager_complaints(source, file):
    """Imports at the head of mindblip2/__init__.py, which loads the public names when they are asked for."""
    return [
        f"{file}:{line}: imports {name} eagerly"
        for line, name in foreign_imports(ast.parse(source).body, "mindblip2")
    ]


def entry_point_complaints(source, file, public):
    """Imports of run_blip2.py other than the ``public`` names of mindblip2, its file_io and PyYAML."""
    names = ["yaml", "mindblip2.file_io", *(f"mindblip2.{name}" for name in public)]
    return [
        f"{file}:{line}: imports {name}, which is not public"
        for line, name in foreign_imports(ast.walk(ast.parse(source)), "")
        if not any(within(name, allowed) for allowed in names)
    ]


def dynamic_import_complaints(source, file):
    """``import_module("a.b")`` where an import statement would do: import-linter does not see it."""
    return [
        f"{file}:{node.lineno}: imports by a call: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and called(node) in ("import_module", "__import__")
        and any(isinstance(argument, ast.Constant) for argument in node.args[:1])
    ]


def foreign_imports(nodes, package):
    """(line, dotted name) of what is imported from outside the standard library; ``from a import b`` is
    ``a.b``."""
    return [
        (node.lineno, name)
        for node in nodes
        for name in imported(node, package)
        if name.split(".")[0] not in sys.stdlib_module_names
    ]


def imported(node, package):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parts = package.split(".")
        base = parts[: len(parts) - node.level + 1] if node.level else []
        return [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]
    return []


def called(node):
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def within(name, prefix):
    return name == prefix or name.startswith(prefix + ".")


def package_complaints(files):
    """Folders with modules but without ``__init__.py``, which a wheel would leave out; convert/ in the
    checkout has only a command that is run as a file."""
    folders = {str(Path(file).parent) for file in files} - {"convert"}
    return [f"{folder}: no __init__.py" for folder in sorted(folders) if f"{folder}/__init__.py" not in files]


# ------------------------------------------------------------------------------------------------ source text
def legend_complaints(source, file):
    """A model file explains its shape letters at its head, ``B batch · Q queries``, and its names
    (``query_BQ``) use no others."""
    tree = ast.parse(source)
    head = (ast.get_docstring(tree) or "").splitlines()
    legend = " ".join(line for line in head if re.search(r"\b[A-Z]\b.* · ", line))
    if not legend:
        return [f"{file}: no shape legend (B batch · Q queries · …) in its docstring"]
    explained = set(re.findall(r"\b[A-Z]\b", legend))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    shapes = {
        name: set(name.rpartition("_")[2]) for name in sorted(names) if re.fullmatch(r"[a-z]\w*_[A-Z]+", name)
    }
    return [
        f"{file}: the legend does not explain {', '.join(sorted(letters - explained))} of {name}"
        for name, letters in shapes.items()
        if letters - explained
    ]


def strictness_complaints(source, file):
    """Loading raises on leftovers: no ``strict=False``, under any of its spellings."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            values = [keyword.value for keyword in node.keywords if keyword.arg in ("strict", "strict_load")]
            values += node.args[1:] if called(node) == "load_state_dict" else []
            if any(isinstance(value, ast.Constant) and value.value is False for value in values):
                found.append(f"{file}:{node.lineno}: not strict: {ast.unparse(node)}")
    return found


# Calls that write a file but not by mindblip2.file_io: (file, call) -> why that is right.
OTHER_WRITERS = {
    (
        "mindblip2/trainer/logging.py",
        "open(self.folder / 'train.jsonl', 'a', encoding='utf-8')",
    ): "a log that grows line by line; a line that a kill cuts is dropped when the run goes on",
    (
        "mindblip2/trainer/logging.py",
        "SummaryRecord(str(folder))",
    ): "MindSpore's own log, which grows while it is read",
    (
        "mindblip2/trainer/output_lock.py",
        "open(path, 'a+', encoding='utf-8')",
    ): "a lock: the file itself must stay the same, and its content is a remark for messages",
    ("mindblip2/trainer/trainer.py", "open(os.devnull, 'w')"): "no file",
    (
        "mindblip2/trainer/export.py",
        "ms.export(part.cell, *part.inputs.values(), file_name=str(path), file_format='MINDIR')",
    ): "into the temporary folder of an atomic_folder",
    (
        "mindblip2/data/text/tokenizer.py",
        "tokenizer.save(folder)",
    ): "of our tokenizers, which write by file_io",
    (
        "mindblip2/trainer/loop.py",
        "training_state.save(folder, model, step_of.optimizer, made, runner.keep_checkpoint_max)",
    ): "our own function, which writes by file_io",
    (
        "mindblip2/parity/result_sinks.py",
        "open(self.lines, 'a')",
    ): "a log that grows line by line; a line that a kill cuts is dropped",
    (
        "mindblip2/parity/dump_file.py",
        "zipfile.ZipFile(self.file.__enter__(), 'w', zipfile.ZIP_STORED)",
    ): "into the file of atomic_file",
    (
        "mindblip2/parity/dump_file.py",
        "self.zip.open(name + '.npy', 'w', force_zip64=True)",
    ): "a member of that file",
    ("mindblip2/parity/dump_file.py", "self.zip.open(HEADER + '.npy', 'w')"): "a member of that file",
    (
        "mindblip2/parity/cases/conversion.py",
        "torch.save(dict(state), first)",
    ): "into a temporary directory that is removed at once",
}
WRITING_MODE = re.compile(r"(?=.*[wax+])[rwaxbt+]{1,3}")
OPENERS = {
    "open",
    "fdopen",
    "ZipFile",
    "TarFile",
    "memmap",
    "open_memmap",
    "NamedTemporaryFile",
    "TemporaryFile",
}
COPIERS = {"copy", "copy2", "copyfile", "copyfileobj", "copytree", "move", "make_archive"}  # of shutil
SAVERS = {
    "save",
    "savez",
    "savez_compressed",
    "savetxt",
    "savefig",
    "tofile",
    "dump",
    "safe_dump",
    "dump_all",
    "safe_dump_all",
    "save_file",
    "to_csv",
    "to_json",
    "imsave",
    "imwrite",
    "export",
    "save_checkpoint",
    "SummaryRecord",
    "FileHandler",
    "write_text",
    "write_bytes",
}
OF_MINDSPORE_ONLY = {"export", "save_checkpoint"}  # names that we have too, for what writes by file_io


def writer_complaints(source, file):
    """Calls that write a file and do not do it by mindblip2.file_io, which alone makes files appear whole or
    not at all.

    Right: its functions, and a library's function that is given the file of ``with atomic_file(...) as
    file``."""
    if file == "mindblip2/file_io.py":
        return []
    tree = ast.parse(source)
    safe = {
        id(call)
        for block in ast.walk(tree)
        if isinstance(block, ast.With)
        for name in _atomic_files(block)
        for call in ast.walk(block)
        if isinstance(call, ast.Call) and name in map(ast.unparse, call.args)
    }
    return [
        f"{file}:{call.lineno}: writes without mindblip2.file_io: {ast.unparse(call)}"
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and _writes(call)
        and id(call) not in safe
        and (file, ast.unparse(call)) not in OTHER_WRITERS
    ]


def unused_writers(sources):
    """Entries of OTHER_WRITERS that stand in none of ``sources``, {file: text}, any more."""
    calls = {
        (file, ast.unparse(call))
        for file, text in sources.items()
        for call in ast.walk(ast.parse(text))
        if isinstance(call, ast.Call)
    }
    return [
        f"OTHER_WRITERS of tests/architecture_rules.py: {file} has no call {call}"
        for file, call in OTHER_WRITERS
        if (file, call) not in calls
    ]


def _atomic_files(block):
    """The names of the files that a ``with`` opens by atomic_file."""
    return [
        ast.unparse(item.optional_vars)
        for item in block.items
        if item.optional_vars is not None
        and isinstance(item.context_expr, ast.Call)
        and called(item.context_expr) == "atomic_file"
    ]


def _writes(call):
    name, owner = called(call), ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if name in OPENERS:
        modes = [
            one.value
            for one in [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
            if isinstance(one, ast.Constant) and isinstance(one.value, str)
        ]
        unknown = (
            name == "open"
            and not owner
            and any(
                not isinstance(one, ast.Constant)
                for one in (*call.args[1:2], *(word.value for word in call.keywords if word.arg == "mode"))
            )
        )
        return unknown or "Temporary" in name or any(WRITING_MODE.fullmatch(mode) for mode in modes)
    if name in COPIERS:
        return owner == "shutil" or not owner and name not in ("copy", "move")
    if name in SAVERS:
        if name in ("write_text", "write_bytes"):
            return owner not in ("", "file_io")
        if "dump" in name:  # without a stream they return a text
            return len(call.args) > 1 or any(word.arg == "stream" for word in call.keywords)
        return name not in OF_MINDSPORE_ONLY or owner in ("ms", "mindspore")
    return False


def path_complaints(text, file):
    lines = enumerate(text.splitlines(), 1)
    return [
        f"{file}:{n}: a path of one machine: {line.strip()[:80]}"
        for n, line in lines
        if MACHINE_PATH.search(line)
    ]


def readme_complaints(english, chinese):
    """Both READMEs show the same code, comments aside."""
    lines = difflib.unified_diff(code(english), code(chinese), "README.md", "README_CN.md", lineterm="", n=0)
    return [line for line in lines if not line.startswith("@@")]


def code(markdown):
    """The lines of the fenced blocks that a reader may copy, without comments."""
    blocks = re.findall(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", markdown, re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks if language in CODE for line in block.splitlines()]
    return [line for line in (re.sub(r"(^|\s+)#.*", "", line).rstrip() for line in lines) if line]


# ------------------------------------------------------------------------------------------------ the files
def listed():
    """Tracked files and those that could be: from git where there is one, otherwise whatever lies in the
    checkout."""
    git = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(git, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        names = []
    names = names if any(names) else [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*")]
    skip = re.compile(r"(^|/)(\.(?!ci/)[^/]*|__pycache__|[^/]*\.egg-info|rank_\d+|output|build|dist)/")
    return sorted(name for name in names if name and not skip.search(name) and (ROOT / name).is_file())
