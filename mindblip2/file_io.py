"""Safe reading and writing of files.

Writing: a file that a user keeps is written under a temporary name, synchronised to the disk, and renamed, so
that it is there whole or not at all; :func:`atomic_folder` does the same for the files of a folder.  Reading:
what is damaged is one line that names the file and the next step, and sizes are checked before memory is
taken.
"""

import contextlib
import ctypes
import errno
import itertools
import json
import math
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import yaml

# of a text file that is read whole: COCO's largest annotation file has 0.5 GB
MAX_TEXT_BYTES = 2 << 30
MAX_YAML_BYTES = 16 << 20
MAX_YAML_DEPTH = 50  # of nested values; MindFormers' files have 6
# with anchors followed: nine nested anchors of ten references each are a thousand million
MAX_YAML_NODES = 1_000_000
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_counter = itertools.count()
_open_folders: set[Path] = set()  # temporary folders of atomic_folder blocks that are being executed


class FileError(ValueError):
    """A file that cannot be used; the message names it and says what is wrong, what was expected and the next
    step."""


class DiskFullError(OSError):
    """No space was left for a file; the message says how much was written and how much is free.  What was
    there is unchanged."""


# ------------------------------------------------------------------------------------------------ writing
@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, mode: str = "w", needed: int | None = None) -> Iterator[IO[Any]]:
    """An open file that takes the place of ``path`` when the block ends without an error; else ``path`` stays
    as it was.

    ``mode``: "w" for text (UTF-8, line ends as given) or "wb".  ``needed``: the bytes that the file will
    have, for the message of a full disk.  Folders are made.  A device or a pipe (``/dev/stdout``) is written
    directly.  Raises :class:`DiskFullError`, and OSError where the folder cannot be written."""
    if mode not in ("w", "wb"):
        raise ValueError(f"mode = {mode!r}: expected 'w' or 'wb'")
    text: dict[str, Any] = {} if mode == "wb" else {"encoding": "utf-8", "newline": ""}
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder, expected a file name", str(path))
        with open(path, mode, **text) as device:
            yield device
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path)
    partial = _partial_name(path)
    file: IO[Any] | None = None
    try:
        file = open(partial, mode, **text)
        yield file
        file.flush()
        os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, partial)
        file.close()
        os.replace(partial, path)
        sync_folder(path.parent)
    except Exception as error:
        full = _no_space(error)
        if full is None:
            raise
        raise _disk_full(path, partial, full, needed) from error
    finally:
        if file is not None:
            with contextlib.suppress(OSError):  # what its buffer holds may not fit on the disk either
                file.close()
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file as :func:`atomic_file` does."""
    with atomic_file(path) as file:
        file.write(text)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a binary file as :func:`atomic_file` does."""
    with atomic_file(path, "wb") as file:
        file.write(data)


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 1) -> None:
    """Write ``value`` as JSON, as :func:`atomic_file` does.  Raises ValueError before anything is written
    where it is no JSON."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder whose content takes the place of ``folder``'s when the block ends without an error.

    It begins with what ``folder`` holds (hard links, so write into it with :func:`atomic_file` only, which
    replaces files and never changes one in place).  Old and new are exchanged in one system call.  Where that
    cannot be done (a mount point, the working directory, a file system without it), the new files are renamed
    into ``folder`` one after the other: each is whole, and a kill within these microseconds may leave files
    of both.  Within the block of another ``atomic_folder``, its temporary folder is given back: what is
    written belongs to the outer one.  What other processes write into ``folder`` meanwhile stays."""
    folder = Path(os.path.realpath(folder))
    if folder in _open_folders:
        yield folder
        return
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file, expected the name of a folder", str(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    partial = _partial_name(folder)
    _open_folders.add(partial)
    try:
        if folder.exists():
            shutil.copytree(folder, partial, copy_function=_link, symlinks=True)
        else:
            partial.mkdir()
        before = _inodes(partial)
        yield partial
        for path in [*partial.rglob("*"), partial]:
            if path.is_dir() and not path.is_symlink():
                sync_folder(path)
        if not folder.exists():
            os.rename(partial, folder)
        elif not _in_use(folder) and _exchange(partial, folder):
            _keep_newer(partial, folder, before)
        else:
            _rename_into(partial, folder, before)
        sync_folder(folder.parent)
    except DiskFullError as error:
        # the name that the file was going to have
        if error.filename and Path(error.filename).is_relative_to(partial):
            error.filename = str(folder / Path(error.filename).relative_to(partial))
        raise
    except Exception as error:
        full = _no_space(error)
        if full is None:
            raise
        raise _disk_full(folder, partial, full) from error
    finally:
        _open_folders.discard(partial)
        shutil.rmtree(partial, ignore_errors=True)


def sync_file(path: str | os.PathLike) -> None:
    """Write the content of a file that another library made to the disk, within an :func:`atomic_folder`."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: str | os.PathLike) -> None:
    """Write a folder's list of names to the disk, so that a rename in it lasts."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems have none for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _partial_name(path):
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}-{next(_counter)}.partial")


def _remove_stale(path):
    """Remove what a killed process of this host left of its writing of ``path``."""
    begin = f".{path.name}.{socket.gethostname()}-"
    for one in path.parent.iterdir():
        process = (
            one.name.removeprefix(begin).partition("-")[0]
            if one.name.startswith(begin) and one.suffix == ".partial"
            else ""
        )
        if process.isdigit() and not _alive(int(process)):
            shutil.rmtree(one, ignore_errors=True) if one.is_dir() else one.unlink(missing_ok=True)


def _alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _link(source, target):
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _in_use(folder):
    return os.path.ismount(folder) or Path.cwd().is_relative_to(folder)


def _exchange(one, other):
    """Exchange two folders in one system call (Linux's renameat2); False where that cannot be done."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return (
        call is not None
        and call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0
    )


def _inodes(folder):
    """{relative name: inode} of the files below a folder."""
    return {
        path.relative_to(folder): path.lstat().st_ino
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }


def _keep_newer(old, folder, before):
    """Move into ``folder`` the files of ``old`` that are not those of ``before``: other processes have
    written them meanwhile."""
    now = _inodes(folder)
    for name, inode in _inodes(old).items():
        if before.get(name) != inode and now.get(name) == before.get(name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(old / name, folder / name)


def _rename_into(partial, folder, before):
    new = _inodes(partial)
    for path in sorted(partial.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            (folder / path.relative_to(partial)).mkdir(exist_ok=True)
    for name in [name for name, inode in new.items() if before.get(name) != inode]:
        os.replace(partial / name, folder / name)
    for name in [name for name in before if name not in new]:
        (folder / name).unlink(missing_ok=True)
    sync_folder(folder)


def _no_space(error):
    """The OSError of a full disk that is ``error``, or from whose handling it comes (torch.save raises a
    RuntimeError); else None."""
    while error is not None and not isinstance(error, DiskFullError):
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return error
        error = error.__cause__ or error.__context__
    return None


def _disk_full(path, partial, error, needed=None):
    """The error of a full disk, with the bytes that it needs, those that were written and those that are
    free."""
    files = [partial] if partial.is_file() else partial.rglob("*") if partial.is_dir() else []
    written = sum(one.stat().st_size for one in files if one.is_file())
    free = shutil.disk_usage(path.parent).free
    return DiskFullError(
        error.errno,
        f"no space left on the disk ({error.strerror}): "
        + (f"{needed:,} bytes are needed, " if needed is not None else "")
        + f"{written:,} bytes of it were written, {free:,} bytes are free besides; what was there before is unchanged.  "
        "Free some space, or choose a folder on another disk",
        str(path),
    )


# ------------------------------------------------------------------------------------------------ reading
def regular_file(path: str | os.PathLike, max_bytes: int | None = None, advice: str = "get it again") -> Path:
    """``path``, if it is a regular file of at most ``max_bytes``; FileNotFoundError, or :class:`FileError`
    for a pipe, a device (reading which may wait for ever), a folder, or a file that is too large."""
    path = Path(path)
    try:
        about = path.stat()
    except ValueError:  # a NUL in the name
        raise FileError(f"{str(path)!r} is no file name") from None
    if not stat.S_ISREG(about.st_mode):
        raise FileError(
            f"{path} is a {'folder' if stat.S_ISDIR(about.st_mode) else 'pipe or device'}, expected a file"
        )
    if max_bytes is not None and about.st_size > max_bytes:
        raise FileError(f"{path} has {about.st_size:,} bytes, expected at most {max_bytes:,}; {advice}")
    return path


def read_text(
    path: str | os.PathLike,
    what: str = "a text file",
    advice: str = "get it again, or save it as UTF-8",
    max_bytes: int = MAX_TEXT_BYTES,
) -> str:
    """The text of a UTF-8 file, without a byte order mark.  ``what`` it should be, and the next step, are for
    the messages."""
    path = regular_file(path, max_bytes, advice)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(
            f"{path} is not {what}: byte {error.start} is not UTF-8 ({error.object[error.start]:#04x}); "
            f"{advice}"
        ) from None


def read_json(
    path: str | os.PathLike,
    kind: type | tuple[type, ...] | None = None,
    what: str = "a JSON file",
    advice: str = "get it again",
    max_bytes: int = MAX_TEXT_BYTES,
) -> Any:
    """What a JSON file holds.  ``kind``: dict or list, of which it must be.

    Raises :class:`FileError` for text that is not JSON, is nested too deeply, or holds a number that is not
    finite."""
    return parse_json(read_text(path, what, advice, max_bytes), str(path), kind, what, advice)


def parse_json(
    text: str,
    name: str,
    kind: type | tuple[type, ...] | None = None,
    what: str = "a JSON file",
    advice: str = "get it again",
) -> Any:
    """What a JSON text holds; ``name`` says in messages where it is from, the rest is as for
    :func:`read_json`."""
    try:
        value = json.loads(text, parse_constant=_not_finite, parse_float=_finite)
    except RecursionError:
        raise FileError(f"{name} is not {what}: it is nested too deeply; {advice}") from None
    except ValueError as error:
        raise FileError(
            f"{name} is not {what}: {error if text.strip() else 'it is empty'}; {advice}"
        ) from None
    if kind is not None and not isinstance(value, kind):
        names: dict[type, str] = {dict: "an object {…}", list: "a list […]"}
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise FileError(
            f"{name} is not {what}: it holds a {type(value).__name__}, expected "
            f"{' or '.join(names.get(one, one.__name__) for one in kinds)}; {advice}"
        )
    return value


def read_yaml(path: str | os.PathLike) -> Any:
    """What a YAML file holds, None for an empty one.  Raises :class:`FileError`."""
    return parse_yaml(read_text(path, "a YAML file", "correct it", MAX_YAML_BYTES), str(path))


def parse_yaml(text: str, name: str) -> Any:
    """What a YAML text holds; ``name`` says in messages where it is from.  Only plain data is made, never an
    object of a class.

    Raises :class:`FileError` for text that is not YAML, refers to itself, or whose anchors expand to more
    than a million values."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _expanded_size(node, {}) > MAX_YAML_NODES:
                raise FileError(
                    f"{name} is not usable YAML: its anchors expand to over {MAX_YAML_NODES:,} values; write "
                    "it without them"
                )
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise FileError(
            f"{name} is not usable YAML: it is nested too deeply, or an anchor refers to itself; correct it"
        ) from None
    except FileError:
        raise
    # `2001-99-99` is a ValueError
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise FileError(f"{name} is not YAML: {' '.join(str(error).split())}; correct it") from None


class _Loader(yaml.SafeLoader):
    """Refuses what is nested too deeply, whatever the interpreter's limit of recursion is (MindSpore raises
    it)."""

    depth = 0

    def compose_node(self, parent, index):
        self.depth += 1
        if self.depth > MAX_YAML_DEPTH:
            raise RecursionError
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _expanded_size(node, known):
    """How many values a YAML node stands for, with its anchors followed."""
    if id(node) in known:
        if known[id(node)] is None:
            raise RecursionError
        return known[id(node)]
    known[id(node)] = None
    children = (
        list(itertools.chain.from_iterable(node.value))
        if isinstance(node, yaml.MappingNode)
        else node.value
        if isinstance(node, yaml.SequenceNode)
        else []
    )
    known[id(node)] = 1 + sum(_expanded_size(child, known) for child in children)
    return known[id(node)]


def _not_finite(text):
    raise ValueError(f"{text} is not a finite number")


def _finite(text):
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value
