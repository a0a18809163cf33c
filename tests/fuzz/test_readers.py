"""Every place that reads foreign bytes uses ``file_io``, or is one of READERS, whose formats the fuzz suite
damages."""

import ast
from pathlib import Path

import pytest

from tests.architecture_rules import ROOT, listed
from tests.fuzz.formats import FORMATS

# calls that read a file, or parse what was read
PARSERS = {
    "json.load",
    "json.loads",
    "yaml.load",
    "yaml.safe_load",
    "np.load",
    "np.fromfile",
    "np.loadtxt",
    "np.genfromtxt",
    "pickle.load",
    "pickle.loads",
    "torch.load",
    "safe_open",
    "zipfile.ZipFile",
    "ZipFile",
    "Image.open",
    "Tokenizer.from_file",
    "BPE.from_file",
    "SentencePieceProcessor",
    "csv.reader",
    "csv.DictReader",
    "mmap.mmap",
    "open",
    "gzip.open",
    "tarfile.open",
    "ms.load_checkpoint",
    "load_file",
    "tomllib.load",
}
METHODS = {"read_text", "read_bytes"}  # of a Path
# file → formats of the fuzz suite that go through it, or the reason why what it reads is not foreign
READERS = {
    "mindblip2/file_io.py": (
        "captions",
        "captions_json",
        "yaml",
        "hf_config_json",
        "hf_generation_config_json",
        "added_tokens_json",
        "tokenizer_config_json",
        "training_state_json",
        "best_json",
    ),
    "mindblip2/checkpoint/ckpt.py": ("ckpt",),
    "mindblip2/convert/readers/files.py": ("torch_zip", "torch_legacy", "safetensors"),
    "mindblip2/convert/readers/safetensors_file.py": ("safetensors", "shard_index"),
    "mindblip2/convert/readers/torch_file.py": ("torch_zip", "torch_legacy"),
    "mindblip2/data/datasets/annotations.py": (
        "captions",
        "captions_json",
        "captions_jsonl",
        "captions_csv",
        "coco_json",
        "questions_json",
        "answers_json",
        "flickr8k",
    ),
    "mindblip2/data/datasets/cifar.py": ("cifar_pickle",),
    "mindblip2/data/images/load.py": ("png", "jpeg", "gif", "webp", "tiff", "bmp"),
    "mindblip2/data/text/tokenizer_files.py": ("vocab_txt", "sentencepiece"),
    "mindblip2/data/text/vocabulary.py": (
        "sentencepiece",
        "tokenizer_json",
        "tokenizer_json_values",
        "vocab_json",
        "merges_txt",
    ),
    "mindblip2/distributed/comm.py": "messages between the processes of one run",
    "mindblip2/trainer/output_lock.py": "its own lock file, of which nothing but a message is read",
    "mindblip2/trainer/loop.py": "JSON that was written in the same expression",
    "mindblip2/trainer/logging.py": "its own log, of which it reads the lines up to the first damaged one",
    "mindblip2/parity/dump_file.py": ("parity_dump",),
    "mindblip2/parity/result_sinks.py": "its own rows, with an error that names file and line",
    "mindblip2/parity/inputs.py": "pictures of scikit-learn's package",
    "mindblip2/parity/report/summary.py": "the kernel's description of the processor",
    "mindblip2/parity/reference/model.py": "torch's own reader, for the side of PyTorch",
}


def reads(source: str) -> list[tuple[int, str]]:
    """(line, call) of what a source text reads by itself."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        short = ".".join(name.split(".")[-2:])
        if (
            "." in name
            and name.split(".")[-1] in METHODS
            or short in PARSERS
            and not (name == "open" and _writes(node))
        ):
            found.append((node.lineno, name))
    return found


def _writes(call):
    mode = (
        call.args[1]
        if len(call.args) > 1
        else next((one.value for one in call.keywords if one.arg == "mode"), None)
    )
    return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and not set(mode.value) & set("r+")


def sources():
    return [
        name
        for name in listed()
        if name.endswith(".py") and name.split("/")[0] in ("mindblip2", "convert", "parity", "run_blip2.py")
    ]


def test_every_reader_is_fuzzed():
    stray = [
        f"{name}:{line}: {call}"
        for name in sources()
        if name not in READERS
        for line, call in reads((ROOT / name).read_text(encoding="utf-8"))
    ]
    assert not stray, (
        "read with mindblip2.file_io, or add the reader to READERS and its format to the fuzz suite:\n"
        + "\n".join(stray)
    )


def test_the_table_is_true():
    names = {one.name for one in FORMATS}
    for file, formats in READERS.items():
        assert reads((Path(ROOT) / file).read_text(encoding="utf-8")), (
            f"{file} reads nothing: take it out of READERS"
        )
        assert isinstance(formats, str) or set(formats) <= names, (
            f"{file}: {set(formats) - names} are no formats of the suite"
        )
    fuzzed = {one for formats in READERS.values() if not isinstance(formats, str) for one in formats}
    assert not names - fuzzed, f"no reader of READERS is fuzzed by {names - fuzzed}"


@pytest.mark.parametrize(
    "source, expected",
    [
        ("import json\njson.loads(path.read_text())", ["json.loads", "path.read_text"]),
        ("with open(path) as file:\n    pass", ["open"]),
        ("open(path, 'rb')", ["open"]),
        ("open(path, 'w')", []),
        ("open(path, 'r+')", ["open"]),
        ("import numpy as np\nnp.load(x)", ["np.load"]),
        ("models.BPE.from_file(a, b)", ["models.BPE.from_file"]),
        ("read_json(path)", []),
    ],
)
def test_a_reader_is_found(source, expected):
    assert [call for _, call in reads(source)] == expected
