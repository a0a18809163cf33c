"""``dump`` on a host with torch, ``check`` on one without: the same rows as side by side, and clear words for
bad files."""

import json
import re
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mindblip2.checkpoint.ckpt import Checkpoint, write_checkpoint  # noqa: E402
from mindblip2.parity import dump_file  # noqa: E402
from mindblip2.parity.__main__ import main, parser  # noqa: E402
from mindblip2.parity.candidate.weights import from_file, seeded  # noqa: E402
from mindblip2.parity.dump_file import DumpFile  # noqa: E402
from mindblip2.parity.offline import Check  # noqa: E402
from mindblip2.parity.run import run  # noqa: E402
from mindblip2.parity.weights import Weights  # noqa: E402
from tests.parity.conftest import FILES, TINY, tiny_config  # noqa: E402

pytestmark = pytest.mark.usefixtures("pynative")

CASES = ("vit", "vit.blocks*", "see.layers.0", "read", "caption", "itm", "stage1.losses", "chained *")
SOME = [part for pattern in CASES for part in ("--case", pattern)]
NO_TORCH = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise RuntimeError("this host has no " + name)
sys.meta_path.insert(0, Without())
from parity.__main__ import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules and "transformers" not in sys.modules
sys.exit(code)
"""


@pytest.fixture(scope="module")
def yaml(tmp_path_factory):
    config = tiny_config().replace(
        qformer_config={"num_hidden_layers": 2}, vision_config={"num_hidden_layers": 2}
    )
    return str(config.save_pretrained(tmp_path_factory.mktemp("config")))


@pytest.fixture(scope="module")
def dumped(yaml, tmp_path_factory, pynative):
    path = tmp_path_factory.mktemp("dump") / "torch.npz"
    assert main(["dump", "--config", yaml, "--output", str(path), *SOME]) == 0
    return path


@pytest.fixture(scope="module")
def from_lavis(tmp_path_factory, pynative):
    """A dump of LAVIS's own weights, and their configuration."""
    folder = tmp_path_factory.mktemp("lavis")
    config = str(tiny_config().save_pretrained(folder))
    path = folder / "torch.npz"
    assert (
        main(
            [
                "dump",
                "--config",
                config,
                "--weights",
                str(TINY / FILES[0]),
                "--output",
                str(path),
                "--case",
                "vit.blocks.*",
                "--mode",
                "isolated",
            ]
        )
        == 0
    )
    return path


# ------------------------------------------------------------------------------------------------ the same ro
def test_a_host_without_torch_checks(dumped, tmp_path):
    report = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, "check", str(dumped), "--report", str(report)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "PASS: " in done.stdout, done.stdout + done.stderr
    assert json.loads(report.read_text())["about"]["torch"] and report.with_suffix(".html").exists()


def test_the_rows_are_those_of_both_sides(dumped, yaml):
    """An entry that was written down and read again is the same comparison; only sums over another memory
    order may differ in float64's last digits."""
    here = run(parser().parse_args(["run", "--config", yaml, *SOME]))
    dump = DumpFile(dumped)
    there = [row for rows in Check(dump, seeded(tiny_config(), dump.header["seed"])) for row in rows]
    assert [row.name for row in there] == [row.name for row in here]
    assert [row.ratio for row in there] == pytest.approx([row.ratio for row in here], rel=1e-9)
    assert [row.max_abs for row in there] == [row.max_abs for row in here]
    assert {"vit.blocks.1", "chained vit.blocks.1", "chained qformer.lm_head", "read"} <= {
        row.name for row in here
    }


def test_a_defect_is_seen_on_the_other_host(dumped, capsys):
    assert main(["check", str(dumped), "--defect", "pads visible"]) == 1
    assert "first divergence: read" in capsys.readouterr().out


def test_half_precision_is_judged_by_half_precision(dumped, yaml, tmp_path, capsys):
    """With torch's rounding in bfloat16 as the noise, products in half precision are right; with float32's
    they are a defect."""
    half, some, defect = (
        tmp_path / "half.npz",
        ["--mode", "isolated", "--case", "vit.blocks*"],
        ["--defect", "products in half precision"],
    )
    assert main(["dump", "--config", yaml, "--output", str(half), "--dtype", "bfloat16", *some]) == 0
    assert main(["check", str(half), "--device", "CPU", *some, *defect]) == 0
    assert main(["check", str(dumped), "--device", "CPU", *some, *defect]) == 1  # the control


def test_a_device_that_is_not_there_is_one_line(dumped, capsys):
    assert main(["check", str(dumped), "--device", "Ascend"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and "Ascend" in said and "Traceback" not in said


@pytest.mark.parametrize(
    "mode, wanted",
    [("isolated", r"(?!chained)(?!.* d ).*"), ("gradients", r".* d .*"), ("chained", r"chained .*")],
)
def test_a_mode_is_a_part_of_all_rows(dumped, mode, wanted):
    def rows(*more):
        dump = DumpFile(dumped)
        from mindblip2.parity.selection import Selection

        return [
            row
            for found in Check(
                dump, seeded(tiny_config(), dump.header["seed"]), Selection(("vit*", "chained vit*"), *more)
            )
            for row in found
        ]

    every, some = rows(), rows(mode)
    assert (
        some and some == [row for row in every if re.fullmatch(wanted, row.name)] and len(some) < len(every)
    )


def test_seeded_weights_are_the_same_without_torch():
    config = tiny_config()
    with_torch, without = Weights(config), seeded(config, 20230)
    for name, row in with_torch.rows.items():
        value = with_torch.ours(name)
        assert np.array_equal(value, without(name, value.shape)), row.theirs
    # the control
    assert not np.array_equal(with_torch.ours("itm_head.bias"), seeded(config, 1)("itm_head.bias", (2,)))


def test_each_cell_compiled(dumped):
    assert main(["check", str(dumped), "--graph", "--mode", "isolated", "--case", "vit.blocks.0*"]) == 0
    # gradients and chains need hooks
    assert main(["check", str(dumped), "--graph", "--case", "vit.blocks.0*"]) == 2


def test_a_language_model(tmp_path):
    import yaml as yaml_file

    text = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 96}
    kinds = {
        "llama": {"type": "LlamaConfig"},
        "baichuan": {"type": "LlamaConfig", "position_embedding": "alibi"},
        "opt": {"type": "OPTConfig", "intermediate_size": 64, "max_position_embeddings": 40},
    }
    for kind, more in kinds.items():
        config = tmp_path / f"{kind}.yaml"
        config.write_text(yaml_file.safe_dump({"model": {"model_config": {"text_config": text | more}}}))
        dump = tmp_path / f"{kind}.npz"
        assert main(["dump", "--config", str(config), "--only", "language", "--output", str(dump)]) == 0
        assert main(["check", str(dump)]) == 0
        file = DumpFile(dump)
        # other numbers
        rows = [
            row for found in Check(file, seeded(tiny_config(text_config=text | more), 7)) for row in found
        ]
        assert {row.verdict for row in rows if "head" in row.name} == {"fail"}


# ------------------------------------------------------------------------------------------------ weights of
def test_the_converted_file_is_checked(from_lavis, ckpts, tmp_path, capsys):
    assert main(["check", str(from_lavis), "--ckpt", str(ckpts[FILES[0]])]) == 0
    assert "not those of the dump" not in capsys.readouterr().out
    stored, wrong = Checkpoint(ckpts[FILES[0]]), "vit.blocks.2.mlp.up.bias"
    write_checkpoint(
        tmp_path / "wrong.ckpt",
        ((name, "Float32", stored[name] + np.float32(name == wrong)) for name in stored),
    )
    assert main(["check", str(from_lavis), "--ckpt", str(tmp_path / "wrong.ckpt")]) == 1
    printed = capsys.readouterr().out
    assert f"weights here are not those of the dump to the last bit: {wrong}" in printed
    assert "first divergence: vit.blocks.2.mlp.up" in printed and "weights rather than code" in printed


# ------------------------------------------------------------------------------------------------ bad files
def rewritten(source: Path, path: Path, change) -> Path:
    """The dump with another header."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if name != "header.npy":
                new.writestr(name, old.read(name))
        header = DumpFile(source).header | change
        with new.open("header.npy", "w") as file:
            np.lib.format.write_array(file, np.frombuffer(json.dumps(header).encode(), np.uint8))
    return path


def complaint(capsys, *arguments: str) -> str:
    """The one line of an error."""
    assert main(list(arguments)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    return printed


def test_damaged_dumps_are_named(from_lavis, ckpts, tmp_path, capsys):
    data, bad = from_lavis.read_bytes(), tmp_path / "bad.npz"
    check = ["check", str(bad), "--ckpt", str(ckpts[FILES[0]])]
    assert "no dump at" in complaint(capsys, *check)
    for content in (b"", b"no zip at all", data[: len(data) // 2], data[:-10]):
        bad.write_bytes(content)
        assert "damaged, truncated or no parity dump" in complaint(capsys, *check)
    middle = len(data) // 3
    # one bit: the checksum tells
    bad.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    assert "damaged, truncated or no parity dump" in complaint(capsys, *check)
    shutil.copy(from_lavis, bad)
    assert main(check) == 0  # the control: whole, it passes


def headed(
    path: Path, header: bytes, compression: int = zipfile.ZIP_STORED, shape: tuple | None = None
) -> Path:
    """A .npz with this header, perhaps of another shape than it has."""
    with zipfile.ZipFile(path, "w", compression) as file, file.open("header.npy", "w") as member:
        about = {"descr": "|u1", "fortran_order": False, "shape": (len(header),) if shape is None else shape}
        np.lib.format.write_array_header_1_0(member, about)
        member.write(header)
    return path


WHOLE = {
    "format": dump_file.FORMAT,
    "config": {},
    "seed": 1,
    "dtype": "float32",
    "fingerprints": {},
    "weights": "seeded",
    "entries": [],
}
ENTRY = {
    "kind": "case",
    "half": "vision",
    "name": "read",
    "inputs": {},
    "torch32": {},
    "truth": {},
    "weights": [],
    "backward": False,
    "fixed": [],
    "stacked": [],
    "values": True,
}


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_b4_a_compressed_dump_is_refused_before_it_is_unpacked(tmp_path, compression, capsys):
    """Small in the file, large in memory."""
    path = headed(tmp_path / "bomb.npz", bytes(20_000_000), compression)
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    assert "bomb.npz: header is compressed" in complaint(capsys, "check", str(path))
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_b4_members_that_overlap_are_refused(tmp_path):
    """Every name leads to the same bytes: together they are larger than the file."""
    path = tmp_path / "overlap.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("header.npy", bytes(5000))
        for number in range(50):
            other = zipfile.ZipInfo(f"a{number}.npy")
            other.header_offset, other.CRC = 0, file.getinfo("header.npy").CRC
            other.file_size = other.compress_size = 5000
            file.filelist.append(other)
            file.NameToInfo[other.filename] = other
    with pytest.raises(dump_file.DumpError, match="would take 255,000 bytes"):
        dump_file.Arrays(path)


@pytest.mark.parametrize("shape", [(10**12,), (10**400,), (-5,), (2**40, 2**40), (3,)])
def test_b4_a_shape_that_the_bytes_do_not_have_is_refused(tmp_path, shape, capsys):
    assert "header of shape" in complaint(
        capsys, "check", str(headed(tmp_path / "huge.npz", b"0123456789", shape=shape))
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"entries": [None]}, "entry 0 has kind = None"),
        ({"entries": None}, "has entries = None, expected a list"),
        ({"entries": [ENTRY | {"truth": None}]}, "entry 0 has truth = None"),
        ({"entries": [ENTRY | {"truth": {"": None}}]}, "names that are no"),
        ({"entries": [ENTRY | {"half": "sound"}]}, "expected vision or language"),
        ({"entries": [ENTRY | {"weights": [3]}]}, "names that are no"),
        ({"config": {"no_such_key": 1}}, "its configuration cannot be used"),
        ({"config": []}, "expected a dict"),
        ({"seed": True}, "seed = True"),
        ({"entries": [ENTRY | {"truth": {"": "0" * 24}}]}, "1 arrays of its header are missing"),
    ],
)
def test_b12_a_damaged_header_is_one_line(tmp_path, change, words, capsys):
    path = headed(tmp_path / "bad.npz", json.dumps(WHOLE | change).encode())
    line = complaint(capsys, "check", str(path))
    assert "bad.npz" in line and words in line


def test_b12_deep_json_is_one_line_and_a_right_header_is_read(tmp_path, capsys):
    deep = b'{"format": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert "RecursionError" in complaint(capsys, "check", str(headed(tmp_path / "deep.npz", deep)))
    right = DumpFile(headed(tmp_path / "right.npz", json.dumps(WHOLE | {"entries": [ENTRY]}).encode()))
    assert right.entries == [ENTRY]


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"rows": [null], "about": {}}',
        '{"rows": {}, "about": {}}',
        '{"rows": [{"name": "a"}], "about": {}}',
        '{"rows": [{"name": "a", "ratio": "x"}], "about": {}}',
        "\udce4",
    ],
)
def test_b12_a_damaged_result_is_one_line(tmp_path, content, capsys):
    path = tmp_path / "result.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "result.json" in complaint(capsys, "report", str(path))


def test_other_files_are_named(from_lavis, ckpts, tmp_path, capsys):
    check = ["--ckpt", str(ckpts[FILES[0]])]
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    assert "it has no header" in complaint(capsys, "check", str(tmp_path / "other.npz"), *check)
    # would be unpickled
    np.savez(tmp_path / "code.npz", header=np.array([{"format": dump_file.FORMAT}], dtype=object))
    assert "damaged, truncated or no parity dump" in complaint(
        capsys, "check", str(tmp_path / "code.npz"), *check
    )
    newer = rewritten(from_lavis, tmp_path / "newer.npz", {"format": "mindblip2 parity dump 99"})
    assert "dump again with this version" in complaint(capsys, "check", str(newer), *check)
    entry = DumpFile(from_lavis).entries[0] | {"truth": {"": "0" * 24}}
    lacking = rewritten(from_lavis, tmp_path / "lacking.npz", {"entries": [entry]})
    assert "1 arrays of its header are missing" in complaint(capsys, "check", str(lacking), *check)


def test_other_checkpoints_are_named(from_lavis, ckpts, dumped, tmp_path, capsys):
    assert "give the converted file with --ckpt" in complaint(capsys, "check", str(from_lavis))
    stored = Checkpoint(ckpts[FILES[0]])
    write_checkpoint(
        tmp_path / "less.ckpt", ((name, "Float32", stored[name]) for name in stored if name != "temp")
    )
    assert "holds no temp" in complaint(
        capsys, "check", str(from_lavis), "--ckpt", str(tmp_path / "less.ckpt")
    )
    cut = "vision_proj.bias"
    write_checkpoint(
        tmp_path / "other.ckpt",
        ((name, "Float32", stored[name][:1] if name == cut else stored[name]) for name in stored),
    )
    said = complaint(capsys, "check", str(from_lavis), "--ckpt", str(tmp_path / "other.ckpt"))
    assert f"{cut} has (1,), the model (32,)" in said
    (tmp_path / "cut.ckpt").write_bytes(Path(ckpts[FILES[0]]).read_bytes()[:5000])
    complaint(capsys, "check", str(from_lavis), "--ckpt", str(tmp_path / "cut.ckpt"))
    assert from_file(str(ckpts[FILES[0]]))("temp", ()).shape == ()


def test_a_dump_that_was_stopped_leaves_no_file(tmp_path):
    writer = dump_file.Writer(tmp_path / "half.npz")
    writer.add("case", "x", {"": np.ones(3)}, {"": np.ones(3)})
    assert not (tmp_path / "half.npz").exists()
    writer.add("case", "y", {"": np.ones(3)}, {"": np.ones(3)})
    writer.close(config={}, seed=1, dtype="float32", fingerprints={}, weights="seeded")
    assert len(dump_file.Arrays(tmp_path / "half.npz")) == 2  # the shared array once, and the header


def test_a_defect_that_the_dump_cannot_show_is_refused(dumped, capsys):
    """Conversions there and back need torch on both sides, so no dump holds them."""
    assert main(["check", str(dumped), "--defect", "norms exchanged on the way back"]) == 2
    assert "no case that would tell 'norms exchanged on the way back'" in capsys.readouterr().err
