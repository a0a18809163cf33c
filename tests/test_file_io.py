"""Files are written whole or not at all, and a damaged one is a line that names it."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from mindblip2.file_io import (
    DiskFullError,
    FileError,
    atomic_file,
    atomic_folder,
    parse_yaml,
    read_json,
    read_text,
    read_yaml,
    regular_file,
    write_json,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_file(path) as file:
        file.write("one\n")
        assert not path.exists()
    assert path.read_bytes() == b"one\n" and names(path.parent) == ["a.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(KeyError), atomic_file(tmp_path / "a.txt") as file:
        file.write("new")
        raise KeyError
    assert read_text(tmp_path / "a.txt") == "old" and names(tmp_path) == ["a.txt"]


def test_a_link_stays_a_link_and_permissions_stay(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    (tmp_path / "a.txt").chmod(0o640)
    (tmp_path / "link").symlink_to("a.txt")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and read_text(tmp_path / "a.txt") == "new"
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_a_full_disk_says_what_was_written_and_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(DiskFullError, match="a.txt") as caught, atomic_file(tmp_path / "a.txt", "wb") as file:
        file.write(b"12345")
        file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (
        "5 bytes" in str(caught.value)
        and read_text(tmp_path / "a.txt") == "old"
        and names(tmp_path) == ["a.txt"]
    )
    with pytest.raises(PermissionError), atomic_file(tmp_path / "a.txt"):
        raise PermissionError(errno.EACCES, "denied")


def test_a_folder_is_exchanged_as_one(tmp_path):
    folder = tmp_path / "model"
    with atomic_folder(folder) as new:
        write_text(new / "config", "1")
        write_text(new / "weights", "1")
        assert not folder.exists()
    with atomic_folder(folder) as new:
        assert names(new) == ["config", "weights"]
        write_text(new / "config", "2")
        (new / "weights").unlink()
        assert read_text(folder / "config") == "1"
    assert (
        names(folder) == ["config"] and read_text(folder / "config") == "2" and names(tmp_path) == ["model"]
    )
    with pytest.raises(KeyError), atomic_folder(folder) as new:
        write_text(new / "config", "3")
        raise KeyError
    assert read_text(folder / "config") == "2" and names(tmp_path) == ["model"]


def test_b5_a_folder_within_a_folder_is_written_with_it(tmp_path):
    folder = tmp_path / "model"
    with atomic_folder(folder) as outer:
        write_text(outer / "config", "1")
        with atomic_folder(outer) as inner:
            assert inner == outer
            write_text(inner / "tokenizer", "1")
        assert not folder.exists()
    assert names(folder) == ["config", "tokenizer"] and names(tmp_path) == ["model"]


@pytest.mark.parametrize("is_here", [False, True])
def test_b5_what_others_write_meanwhile_stays(tmp_path, monkeypatch, is_here):
    folder = tmp_path / "model"
    for name in ("config", "log", "old", "theirs"):
        write_text(folder / name, "1")
    if is_here:
        monkeypatch.chdir(folder)
    with open(folder / "log", "a") as log, atomic_folder(folder) as new:
        write_text(new / "config", "2")
        (new / "old").unlink()
        log.write("2")
        write_text(folder / "theirs", "2")
        write_text(folder / "sub" / "new", "2")
    assert names(folder) == ["config", "log", "sub", "theirs"]
    assert [read_text(folder / name) for name in ("config", "log", "sub/new", "theirs")] == [
        "2",
        "12",
        "2",
        "2",
    ]


def test_b5_a_full_disk_names_the_file_that_was_meant(tmp_path):
    with (
        pytest.raises(DiskFullError) as caught,
        atomic_folder(tmp_path / "model") as new,
        atomic_file(new / "a" / "b", "wb", 77) as file,
    ):
        file.write(b"12345")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "model" / "a" / "b") and "77 bytes are needed" in str(
        caught.value
    )
    assert names(tmp_path) == []


def test_b10_an_error_that_hides_a_full_disk_is_one_too(tmp_path):
    """torch.save fails to finish its archive, and raises a RuntimeError."""

    def save(path, number):
        with atomic_file(path, "wb"):
            try:
                raise OSError(number, "x")
            finally:
                raise RuntimeError("unexpected pos 704")

    with pytest.raises(DiskFullError, match="no space left"):
        save(tmp_path / "a", errno.ENOSPC)
    with pytest.raises(RuntimeError, match="unexpected pos"):
        save(tmp_path / "a", errno.EIO)
    assert names(tmp_path) == []


def test_b5_what_is_no_json_is_not_written(tmp_path):
    write_json(tmp_path / "a.json", [1.5])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", [float("nan")])
    assert read_json(tmp_path / "a.json") == [1.5]


def test_the_working_directory_keeps_its_identity(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text("config", "1")
    write_text("old", "1")
    (tmp_path / "sub").mkdir()
    before = tmp_path.stat().st_ino
    with atomic_folder(".") as new:
        write_text(new / "config", "2")
        write_text(new / "sub" / "more", "2")
        (new / "old").unlink()
    assert tmp_path.stat().st_ino == before and names(tmp_path) == ["config", "sub"]
    assert read_text("config") == "2" and read_text("sub/more") == "2"


KILLED = """
import sys, itertools
from mindblip2.file_io import atomic_folder, write_text
for i in itertools.count():
    with atomic_folder(sys.argv[1]) as new:
        write_text(new / "a", str(i) * 20000)
        write_text(new / "b", str(i) * 20000)
    print(i, flush=True)
"""


def test_killed_writers_leave_a_whole_folder_and_the_next_one_cleans_up(tmp_path):
    folder = tmp_path / "model"
    for delay in (0.01, 0.02, 0.03, 0.05, 0.08):
        process = subprocess.Popen([sys.executable, "-c", KILLED, folder], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert names(folder) == ["a", "b"] and read_text(folder / "a") == read_text(folder / "b")
    with atomic_folder(folder):
        pass
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"", "it is empty"),
        (b"{", "Expecting property name"),
        (b"\xff{}", "byte 0 is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[NaN]", "NaN is not a finite number"),
        (b"[1e999]", "1e999 is not a finite number"),
        (b"[1]", "expected an object"),
    ],
)
def test_damaged_json_is_a_line_with_the_name(tmp_path, content, complaint):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FileError, match="a.json") as caught:
        read_json(tmp_path / "a.json", dict)
    assert (
        complaint in str(caught.value)
        and "get it again" in str(caught.value)
        and "\n" not in str(caught.value)
    )


def test_sound_json_is_read(tmp_path):
    write_json(tmp_path / "a.json", {"ä": [1, 2.5, None]})
    assert (
        read_json(tmp_path / "a.json", dict)
        == {"ä": [1, 2.5, None]}
        == json.loads((tmp_path / "a.json").read_text("utf-8"))
    )
    (tmp_path / "b.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "b.json", list) == [1]


NESTED = "a0: &a0 [1,1]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))


@pytest.mark.parametrize(
    "text, complaint",
    [
        (NESTED, "anchors expand"),
        ("&a [*a]", "refers to itself"),
        ("[" * 5000, "nested too deeply"),
        ("2001-99-99", "month must be"),
        ("a: [", "expected"),
        ("!!python/object:os.system x", "could not determine a constructor"),
    ],
)
def test_damaged_yaml_is_an_error_with_the_name(tmp_path, text, complaint):
    (tmp_path / "a.yaml").write_text(text)
    start = time.monotonic()
    with pytest.raises(FileError, match="a.yaml") as caught:
        read_yaml(tmp_path / "a.yaml")
    assert complaint in str(caught.value) and "\n" not in str(caught.value) and time.monotonic() - start < 5


def test_anchors_are_followed():
    assert parse_yaml("a: &x {b: 1}\nc: *x", "text") == {"a": {"b": 1}, "c": {"b": 1}}
    assert parse_yaml("", "text") is None


def test_pipes_folders_and_large_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, complaint in (("pipe", "pipe or device"), (".", "is a folder")):
        with pytest.raises(FileError, match=complaint):
            regular_file(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        regular_file(tmp_path / "none")
    write_text(tmp_path / "a", "123")
    assert regular_file(tmp_path / "a", 3) == tmp_path / "a"
    with pytest.raises(FileError, match="3 bytes, expected at most 2"):
        regular_file(tmp_path / "a", 2)
