"""Readers of foreign bytes meet damaged files: the same content, one line that names the file, or, where a
format has no checksum, other content, which is counted.  Never a raw traceback, a hang, a gigabyte, a program
that is run or a file that is written."""

import hashlib
import json
import os
import random
from collections import Counter

import numpy as np
import pytest

from tests.fuzz.formats import FORMATS
from tests.fuzz.limits import BYTES, TookTooLong, limited
from tests.fuzz.mutate import mutated_bytes, mutated_json

MANY = {"quick": 300, "slow": 5000}
# How many mutations of a format gave other content. A format with checksums has none; for the others the
# figure may fall, not grow.
OTHER_CONTENT = {  # format → of 300 mutations, of 5,000
    "ckpt": (22, 442),
    "torch_zip": (0, 0),
    "torch_legacy": (14, 165),
    "safetensors": (29, 373),
    "shard_index": (24, 406),
    "hf_config_json": (56, 1013),
    "hf_generation_config_json": (54, 1067),
    "captions": (14, 264),
    "captions_json": (35, 583),
    "captions_jsonl": (24, 247),
    "captions_csv": (107, 1801),
    "coco_json": (21, 325),
    "questions_json": (94, 1438),
    "answers_json": (45, 648),
    "flickr8k": (170, 2740),
    "yaml": (4, 42),
    "vocab_txt": (73, 1313),
    "tokenizer_json": (1, 15),
    "tokenizer_json_values": (3, 24),
    "vocab_json": (7, 57),
    "merges_txt": (7, 208),
    "tokenizer_config_json": (3, 69),
    "added_tokens_json": (75, 1239),
    "sentencepiece": (0, 1),
    "png": (0, 0),
    "jpeg": (110, 1670),
    "gif": (129, 2257),
    "webp": (74, 1026),
    "tiff": (58, 760),
    "bmp": (207, 3282),
    "cifar_pickle": (29, 490),
    "training_state_json": (62, 1019),
    "best_json": (300, 5000),
    "parity_dump": (0, 0),
}
RAW = (UnicodeError, json.JSONDecodeError)  # ValueErrors of libraries that name no file


def digest(value) -> str:
    """A hash of nested content; arrays count with their types and shapes."""
    sha = hashlib.sha256()

    def add(one):
        if isinstance(one, np.ndarray):
            sha.update(f"array{one.dtype}{one.shape}".encode() + one.tobytes())
        elif isinstance(one, dict):
            for key, inner in one.items():
                add(key), add(inner)
        elif isinstance(one, (list, tuple)):
            sha.update(f"[{len(one)}".encode())
            for inner in one:
                add(inner)
        else:
            sha.update(f"{type(one).__name__}{one!r}".encode("utf-8", "surrogatepass"))

    add(value)
    return sha.hexdigest()


def complaint(error: BaseException, path) -> str | None:
    """What is wrong with the error of a reader; None for one line that names the file."""
    chain, one = [], error
    while one is not None:
        chain.append(one)
        one = one.__cause__ or one.__context__
    if isinstance(error, TookTooLong):
        return "took too long"
    if any(isinstance(one, MemoryError) for one in chain):
        return f"asked for more than {BYTES:,} bytes"
    if not isinstance(error, (ValueError, OSError)) or isinstance(error, RAW):
        return f"raw {type(error).__name__}: {error}"[:300]
    if path.name not in str(error) and path.parent.name not in str(error):
        return f"does not name the file: {error}"[:300]
    if "\n" in str(error):
        return f"has several lines: {error}"[:300]
    return None


def outcome(one, path, expected) -> tuple[str, str | None]:
    """("same" | "error" | "other", what is wrong or None) of reading a file."""
    files = sorted(os.listdir(path.parent))
    with limited() as seen:
        try:
            result, wrong = digest(one.read(path)), None
        except (Exception, TookTooLong) as error:
            result, wrong = "error", complaint(error, path)
    if seen:
        wrong = f"did {seen[0]}"
    if sorted(os.listdir(path.parent)) != files:
        wrong = f"left {set(os.listdir(path.parent)) ^ set(files)}"
    return ("error" if result == "error" else "same" if result == expected else "other"), wrong


def run(one, folder, count):
    """Counts of the outcomes of ``count`` seeded mutations; the complaints as {line: number of the first
    mutation}."""
    path = one.make(folder)
    sound = path.read_bytes()
    expected = digest(one.read(path))
    assert outcome(one, path, expected) == ("same", None)
    counts, complaints = Counter(), {}
    for number in range(count):
        path.write_bytes(one.mutate(sound, random.Random(f"{one.name} {number}")))
        result, wrong = outcome(one, path, expected)
        counts[result] += 1
        if wrong:
            complaints.setdefault(wrong, number)
    return counts, complaints


@pytest.mark.parametrize("extent", ["quick", pytest.param("slow", marks=pytest.mark.slow)])
@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_damage_is_the_same_content_or_a_clear_error(one, extent, tmp_path):
    folder = tmp_path / "folder_of_the_file"
    folder.mkdir()
    counts, complaints = run(one, folder, MANY[extent])
    print(one.name, extent, dict(counts))
    assert not complaints, "\n".join(f"mutation {number}: {line}" for line, number in complaints.items())
    assert counts["other"] <= OTHER_CONTENT[one.name][extent == "slow"], counts


# ------------------------------------------------------------------------------------------------ negative co
class Reader:
    name = "control"
    mutate = staticmethod(mutated_bytes)

    def __init__(self, read):
        self.read = read

    @staticmethod
    def make(folder):
        (folder / "file").write_bytes(b"content")
        return folder / "file"


def _forever(path):
    if path.read_bytes() != b"content":
        while True:
            pass


def _large(path):
    return np.zeros(2 * BYTES if path.read_bytes() != b"content" else 1, np.uint8).size


def _caught_large(path):
    try:
        return _large(path)
    except MemoryError:
        raise ValueError(f"{path} is damaged") from None


def _writes(path):
    if path.read_bytes() != b"content":
        path.with_name("other").write_text("x")


@pytest.mark.parametrize(
    "read, expected",
    [
        (lambda path: {b"content": 1}[path.read_bytes()], "raw KeyError"),
        (lambda path: path.read_bytes().decode("ascii"), "raw UnicodeDecodeError"),
        (lambda path: path.read_bytes().index(b"content"), "does not name the file"),
        (_forever, "took too long"),
        (_large, "asked for more"),
        (_caught_large, "asked for more"),
        (_writes, "did open"),
    ],
)
def test_a_careless_reader_is_noticed(read, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.fuzz.limits.SECONDS", 0.5)
    _, complaints = run(Reader(read), tmp_path, 8)
    assert any(expected in line for line in complaints), complaints


def test_other_content_is_counted(tmp_path):
    counts, complaints = run(Reader(lambda path: path.read_bytes()), tmp_path, 50)
    assert not complaints and counts["other"] > 40


def test_mutations_are_seeded_and_change_something():
    data = json.dumps({"a": [1, 2, {"b": None}]}).encode()
    for mutate in (mutated_bytes, mutated_json):
        made = [mutate(data, random.Random(number)) for number in range(100)]
        assert made == [mutate(data, random.Random(number)) for number in range(100)]
        assert sum(one != data for one in made) > 80
