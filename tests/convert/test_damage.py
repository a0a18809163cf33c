"""What is damaged, or is no weight, is one line that names the file; what was sound goes on being read."""

import errno
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from mindblip2 import file_io  # noqa: E402
from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError, write_checkpoint  # noqa: E402
from mindblip2.convert.convert_weight import main  # noqa: E402
from mindblip2.convert.readers.files import read_state_dict  # noqa: E402
from tests.convert.stage2 import SAID, llama, save  # noqa: E402

STATE = {
    "a": torch.arange(24.0).reshape(4, 6),
    "b": torch.ones(3, dtype=torch.bfloat16),
    "c": torch.full((5, 5), 0.07),
}
A_NAME = "model.layers.1.mlp.up_proj.weight"


def everything(path):
    found = read_state_dict(path)
    return {name: found[name] for name in found}


def assert_is_state(found):
    assert found.keys() == STATE.keys()
    assert [
        name
        for name, value in STATE.items()
        if found[name].dtype != value.dtype or not torch.equal(found[name], value)
    ] == []


def rezipped(source, target, method):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return target


def refused(path, complaint):
    """Reading is one line that names the file and says ``complaint``."""
    with pytest.raises((CheckpointError, file_io.FileError), match=complaint) as caught:
        everything(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def saved(tmp_path):
    torch.save(STATE, tmp_path / "x.pth")
    return tmp_path / "x.pth"


# ------------------------------------------------------------------------------------------------ the zip fil
def test_a6_a_compressed_file_gives_the_same_tensors(saved, tmp_path):
    assert_is_state(everything(rezipped(saved, tmp_path / "deflated.pth", zipfile.ZIP_DEFLATED)))
    assert (tmp_path / "deflated.pth").read_bytes() != rezipped(
        saved, tmp_path / "stored.pth", zipfile.ZIP_STORED
    ).read_bytes()
    assert_is_state(everything(tmp_path / "stored.pth"))
    refused(rezipped(saved, tmp_path / "bz2.pth", zipfile.ZIP_BZIP2), "is compressed by method 12, only 0")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a6_a_flipped_bit_of_any_tensor_is_noticed(saved, tmp_path, method):
    path = rezipped(saved, tmp_path / "y.pth", method)
    with zipfile.ZipFile(path) as file:
        members = [one for one in file.infolist() if "/data/" in one.filename]
        places = [one.header_offset + 30 + len(one.filename) + one.compress_size // 2 for one in members]
    data = path.read_bytes()
    assert_is_state(everything(path))
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        refused(path, "is damaged: the checksum of y/data/.|is damaged: .* cannot be decompressed|x/data/")


def test_a6_a_flipped_bit_outside_of_the_tensor_that_is_read_is_noticed_too(tmp_path):
    both = torch.arange(100.0)
    torch.save({"a": both[:10], "b": both[10:]}, tmp_path / "x.pth")  # one storage
    data = (tmp_path / "x.pth").read_bytes()
    place = data.index(both[50:52].numpy().tobytes())
    assert torch.equal(read_state_dict(tmp_path / "x.pth")["a"], both[:10])
    (tmp_path / "x.pth").write_bytes(data[:place] + b"\1" + data[place + 1 :])
    with pytest.raises(CheckpointError, match="x.pth is damaged: the checksum of x/data/0"):
        read_state_dict(tmp_path / "x.pth")["a"]


def patched_directory(path, member, offset, value):
    """The path with a 4-byte number of a member's entry in the directory changed."""
    data = bytearray(path.read_bytes())
    at = next(
        at for at in range(len(data)) if data[at : at + 4] == b"PK\1\2" and data[at + 46 :].startswith(member)
    )
    data[at + offset : at + offset + 4] = struct.pack("<I", value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "sizes, complaint",
    [
        ((8, 8), "x/data/0 has 8 bytes, 96 expected|says 96 bytes"),
        ((96, 40), "stand for 40"),
        ((200, 200), "says 96 bytes, the directory of the zip file 200|overlaps"),
        ((1 << 31, 1 << 31), "overlaps|says 96 bytes"),
    ],
)
def test_a6_sizes_that_disagree_are_refused_before_anything_is_read(saved, sizes, complaint):
    for offset, value in zip((20, 24), sizes):
        patched_directory(saved, b"x/data/0", offset, value)
    with pytest.raises(CheckpointError, match=complaint):
        read_state_dict(saved)


def test_a6_members_that_overlap_or_are_there_twice_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        for name in ("x/data.pkl", "x/data/0", "x/data/1"):
            file.writestr(name, b"1234")
    with zipfile.ZipFile(tmp_path / "x.pth") as file:
        first = file.getinfo("x/data/0").header_offset
    refused(
        patched_directory(tmp_path / "x.pth", b"x/data/1", 42, first), "disagrees with the directory|overlaps"
    )
    with zipfile.ZipFile(tmp_path / "y.pth", "w") as file, pytest.warns(UserWarning, match="Duplicate"):
        for name in ("x/data.pkl", "x/data/0", "x/data/0"):
            file.writestr(name, b"1234")
    refused(tmp_path / "y.pth", "two members x/data/0")


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a6_other_zip_files_are_told_apart(tmp_path):
    np.savez(tmp_path / "arrays.pth", a=np.ones(3))
    (tmp_path / "arrays.pth.npz").rename(tmp_path / "arrays.pth")
    refused(tmp_path / "arrays.pth", "is a zip file, but no torch file")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "program.pth")
    refused(tmp_path / "program.pth", "is a TorchScript program, not a state dict")


# ------------------------------------------------------------------------------------------------ what the pi
def test_b4_a_tensor_that_repeats_its_numbers_is_refused_and_takes_no_memory(tmp_path):
    for zip_format in (True, False):
        torch.save(
            {"a": torch.ones(1).expand(2**36)}, tmp_path / "x.pth", _use_new_zipfile_serialization=zip_format
        )
        refused(tmp_path / "x.pth", r"shape \(68719476736,\) with strides \(0,\).* lies in only 1 numbers")
        torch.save(
            {"a": torch.arange(4.0).expand(1, 4), "b": torch.ones(3, 2).T},
            tmp_path / "x.pth",
            _use_new_zipfile_serialization=zip_format,
        )
        assert everything(tmp_path / "x.pth")["b"].shape == (2, 3)  # the control


@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "value, complaint",
    [
        (lambda: {"a": torch.ones(2), 3: torch.ones(2)}, "3 is no text, expected names"),
        (lambda: {"a": torch.ones(2, 2).to_sparse()}, "'a' is a sparse tensor, expected"),
        (lambda: {"a": torch.ones(2, device="meta")}, r"'a' is a tensor without data \(device meta\)"),
        (lambda: {"a": torch.ones(2), "b": 3}, "'b' is a int, expected"),
    ],
)
def test_b12_what_is_no_dense_tensor_under_a_name_is_named(tmp_path, value, complaint, zip_format):
    torch.save(value(), tmp_path / "x.pth", _use_new_zipfile_serialization=zip_format)
    refused(tmp_path / "x.pth", complaint)


def test_b12_a_pickle_of_large_numbers_takes_no_memory(tmp_path):
    """The 9 bytes whose memo index made an unpickler take 2.4 GB, and lengths beyond the file."""
    for body in (
        b"\x80\x02)r\xff\xff\xff\x3f.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x3f",
        b"\x80\x02X\xff\xff\xff\x7fab",
        b"(" * 100_000 + b".",
        b"\x80\x02" + b"]" + b"2a" * 1000 + b".",
    ):
        (tmp_path / "x.pth").write_bytes(body)
        refused(tmp_path / "x.pth", "no torch file")


# ------------------------------------------------------------------------------------------------ NaN and Inf
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a7_a_number_that_is_none_names_the_tensor_and_the_file(convert, tmp_path, kind, bad):
    state = llama().to(kind).state_dict()
    folder = save(state, tmp_path / "theirs", **SAID)
    convert(folder)  # the control
    state[A_NAME] = state[A_NAME].clone()
    state[A_NAME][3, 5:7] = bad
    error = convert(save(state, folder), expect=1)
    assert f"{folder / 'pytorch_model.bin'}: 2 of the 1,536 numbers of {A_NAME} are NaN or Inf" in error


@pytest.mark.parametrize("value", [0.0, -0.07, float("nan")])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a7_a_temperature_that_is_not_above_0_is_named(convert, lavis, value, kind):
    state = {name: one.to(kind) if one.is_floating_point() else one for name, one in lavis.items()}
    convert(state)
    assert "temp" in convert({**state, "temp": torch.tensor(value, dtype=kind)}, expect=1)


def test_a7_numbers_that_a_narrower_type_cannot_hold_are_named(convert, tmp_path):
    state = llama().state_dict()
    state[A_NAME][0, 0] = 70000.0
    folder = save(state, tmp_path / "theirs", **SAID)
    assert f"1 numbers of {A_NAME} are beyond 65504, the largest of Float16" in convert(
        folder, "--dtype", "float16", expect=1
    )
    assert np.isfinite(convert(folder, "--dtype", "bfloat16")[0].float32("llm.layers.1.ffn.up.weight")).all()


def test_a7_a_ckpt_with_nan_goes_nowhere(convert, lavis, tmp_path):
    stored, _ = convert(lavis)
    tensors = {name: (name, stored.types[name], stored[name].copy()) for name in stored}
    tensors["itm_head.bias"][2][0] = np.nan
    write_checkpoint(tmp_path / "nan.ckpt", tensors.values())
    assert (
        main(
            [
                "--to_torch",
                "--mindspore_path",
                str(tmp_path / "nan.ckpt"),
                "--torch_path",
                str(tmp_path / "y.pth"),
            ]
        )
        == 1
    )
    with pytest.raises(
        CheckpointError, match=r"nan.ckpt: 1 of the 2 numbers of itm_head.bias are NaN or Inf"
    ):
        Checkpoint(tmp_path / "nan.ckpt").float32("itm_head.bias")
    assert not (tmp_path / "y.pth").exists()


# ------------------------------------------------------------------------------------------------ safetensors
def st(path, header, data=b"", length=None):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_b12_safetensors_headers_are_checked_before_memory_is_taken(tmp_path):
    path = tmp_path / "x.safetensors"
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    assert read_state_dict(st(path, {"a": one}, bytes(8)))["a"].tolist() == [0, 0]
    for header, data, length, complaint in (
        ({"a": one}, bytes(8), 2**60, "its header should have"),
        ({"a": one}, bytes(7), None, "7"),
        ({"a": one}, bytes(9), None, "bytes are there"),
        ({"a": {**one, "shape": [2**60]}}, bytes(8), None, "shape"),
        ({"a": {**one, "shape": [-2]}}, bytes(8), None, "no list of numbers"),
        ({"a": {**one, "dtype": "F3"}}, bytes(8), None, "'F3'"),
        ({"a": one, "b": one}, bytes(8), None, "bytes of b begin at"),
        ([1], b"", None, "no mapping"),
        (b"{", b"", None, "no safetensors"),
        (b'{"a":' * 20000 + b"}" * 20000, b"", None, "no safetensors"),
        ({"a": [1]}, b"", None, "no safetensors"),
        (
            b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}',
            b"",
            None,
            "a name twice",
        ),
    ):
        refused(st(path, header, data, length), complaint)


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"weight_map": [1]}', '{"weight_map": {"a": ""}}', '{"weight_map": {"a": NaN}}', "\xff"],
)
def test_b12_an_index_that_is_none_is_one_line(tmp_path, content):
    index = tmp_path / "model.safetensors.index.json"
    index.write_bytes(content.encode("latin-1"))
    refused(index, "is not an index of shards|is no index of shards")


# ------------------------------------------------------------------------------------------------ writing
def test_b10_a_full_disk_while_a_torch_file_is_written_is_one_line(
    convert, lavis, tmp_path, monkeypatch, capsys
):
    convert(lavis)
    flags = [
        "--to_torch",
        "--mindspore_path",
        str(tmp_path / "out.ckpt"),
        "--torch_path",
        str(tmp_path / "back.pth"),
    ]
    (tmp_path / "back.pth").write_bytes(b"what was there")
    save = torch.save

    def full(content, file):
        save(content, file)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert main(flags) == 1
    error = capsys.readouterr().err
    assert (
        "no space left on the disk" in error
        and "back.pth" in error
        and "what was there before is unchanged" in error
    )
    assert (tmp_path / "back.pth").read_bytes() == b"what was there" and not list(tmp_path.glob(".back*"))
    monkeypatch.undo()
    assert main(flags) == 0 and len(read_state_dict(tmp_path / "back.pth")) == len(lavis)  # the control


# ------------------------------------------------------------------------------------------------ .ckpt
def entry(name, dims, data, kind=b"Float32"):
    def field(number, content):
        size, out = len(content), bytearray([number << 3 | 2])
        while size > 127:
            out.append(size & 127 | 128)
            size >>= 7
        return bytes(out) + bytes([size]) + content

    about = b"".join(b"\x08" + bytes([n]) for n in dims) + field(2, kind) + field(3, data)
    return field(1, field(1, name) + field(2, about))


def test_a12_a_name_that_is_there_twice_with_another_shape_is_refused(tmp_path):
    path, four = tmp_path / "x.ckpt", np.arange(4, dtype=np.float32).tobytes()
    path.write_bytes(entry(b"x", (4,), four[:8]) + entry(b"x", (4,), four[8:]))  # MindSpore's slices
    assert Checkpoint(path)["x"].tolist() == [0, 1, 2, 3]
    for entries in (
        ((b"x", (4,), four), (b"x", (2, 2), four)),
        ((b"x", (2,), four[:8]), (b"x", (4,), four)),
        ((b"x", (4,), four[:8]), (b"y", (4,), four), (b"x", (4,), four[8:])),
        ((b"x", (2, 2), four[:8]), (b"x", (4,), four[8:])),
    ):
        path.write_bytes(b"".join(entry(*one) for one in entries))
        with pytest.raises(CheckpointError, match="x.ckpt is damaged: x is in it twice"):
            Checkpoint(path)


def test_a12_the_checksum_at_the_end_is_verified(tmp_path):
    body = entry(b"x", (4,), np.arange(4, dtype=np.float32).tobytes())
    path = tmp_path / "x.ckpt"
    path.write_bytes(body + b"crc_num" + zlib.crc32(body).to_bytes(10, "big"))
    assert Checkpoint(path)["x"].tolist() == [0, 1, 2, 3]
    flipped = body[:-1] + bytes([body[-1] ^ 1])
    path.write_bytes(flipped + b"crc_num" + zlib.crc32(body).to_bytes(10, "big"))
    with pytest.raises(CheckpointError, match="x.ckpt is damaged: its checksum is .* expected"):
        Checkpoint(path)
    path.write_bytes(flipped)  # without one nothing can be said
    assert len(Checkpoint(path)) == 1


def test_a12_what_mindspore_writes_with_its_checksum_is_read_and_a_flipped_bit_noticed(tmp_path):
    import mindspore as ms

    path = tmp_path / "x.ckpt"
    ms.save_checkpoint(
        [{"name": name, "data": ms.Tensor(np.arange(9, dtype=np.float32))} for name in "ab"],
        str(path),
        crc_check=True,
    )
    data = path.read_bytes()
    assert Checkpoint(path)["b"].tolist() == list(range(9))
    path.chmod(0o600)
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    with pytest.raises(CheckpointError, match="checksum|damaged"):
        Checkpoint(path)


def test_b12_counts_in_a_ckpt_are_checked_before_memory_is_taken(tmp_path):
    path = tmp_path / "x.ckpt"
    for dims, data in (((127,) * 17, b"1234"), ((127,) * 8, b""), ((0, *(127,) * 8), b"")):
        path.write_bytes(entry(b"x", dims, data))
        with pytest.raises(CheckpointError, match="x.ckpt"):
            Checkpoint(path)
