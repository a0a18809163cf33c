"""Our .ckpt files are MindSpore's, both ways; and a broken file is never half read."""

import gc
import os
import re

import mindspore as ms
import numpy as np
import pytest
from mindspore.train import serialization

from mindblip2.checkpoint import ckpt
from mindblip2.checkpoint.ckpt import Checkpoint, CheckpointError, write_checkpoint

RANDOM = np.random.default_rng(0)
ARRAYS = {  # name → (MindSpore's type name, array)
    "a.float32": ("Float32", RANDOM.standard_normal((3, 5)).astype(np.float32)),
    "b.float16": ("Float16", RANDOM.standard_normal((2, 3, 4)).astype(np.float16)),
    "c.int32": ("Int32", RANDOM.integers(-9, 9, (7,), np.int32)),
    "d.scalar": ("Float32", np.float32(0.07)),
    "e.one": ("Float32", np.array([1.5], np.float32)),
    "f.int64": ("Int64", np.array([[2**40, -1]])),
    "g.bool": ("Bool", np.array([True, False, True])),
    "h.uint8": ("UInt8", np.arange(200, dtype=np.uint8)),
    "i.naïve": ("Float64", np.array([[1e300]])),
}
BFLOAT16 = np.array([[1.0, -2.5], [3.140625, 1e30]], np.float32)  # 3.140625 is exact in 8 bits, 1e30 is not


def listed(arrays):
    return [(name, kind, array) for name, (kind, array) in arrays.items()]


def assert_same(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


@pytest.fixture
def written(tmp_path):
    """A file of ours with every kind of tensor."""
    path = tmp_path / "ours.ckpt"
    write_checkpoint(path, listed(ARRAYS))
    return path


@pytest.fixture(scope="module")
def of_mindspore(tmp_path_factory):
    """The same tensors, and a bfloat16 one, as MindSpore writes them, with its checksum."""
    path = tmp_path_factory.mktemp("ms") / "theirs.ckpt"
    tensors = [{"name": name, "data": ms.Tensor(array)} for name, (_, array) in ARRAYS.items()]
    tensors.append({"name": "j.bfloat16", "data": ms.Tensor(BFLOAT16).astype(ms.bfloat16)})
    ms.save_checkpoint(tensors, str(path), crc_check=True)
    return path


# ------------------------------------------------------------------------------------------------ the same fo
def test_mindspore_reads_what_we_write(written):
    found = ms.load_checkpoint(str(written))
    assert list(found) == list(ARRAYS)
    for name, (kind, array) in ARRAYS.items():
        assert str(found[name].dtype) == kind
        assert_same(found[name].asnumpy(), np.asarray(array))


def test_we_read_what_mindspore_writes(of_mindspore):
    assert of_mindspore.read_bytes()[-17:-10] == b"crc_num"
    found = Checkpoint(of_mindspore)
    assert list(found) == [*ARRAYS, "j.bfloat16"] and len(found) == len(ARRAYS) + 1
    for name, (kind, array) in ARRAYS.items():
        assert found.types[name] == kind and found.shapes[name] == np.shape(array)
        assert_same(found[name], np.asarray(array))


def test_a_view_is_the_array_without_a_copy(of_mindspore, tmp_path, monkeypatch):
    found = Checkpoint(of_mindspore)
    for name in found:
        assert_same(found.view(name), found[name])
        assert not found.view(name).flags.owndata
    monkeypatch.setattr(ckpt, "SLICE_BYTES", 16)
    write_checkpoint(
        tmp_path / "x.ckpt",
        [("x", "Float32", ARRAYS["a.float32"][1]), ("e", "Float32", np.zeros(0, np.float32))],
    )
    assert_same(Checkpoint(tmp_path / "x.ckpt").view("x"), ARRAYS["a.float32"][1])
    assert Checkpoint(tmp_path / "x.ckpt").view("e").shape == (0,)


def addresses(path):
    found = Checkpoint(path)
    return [found.view(name).ctypes.data for name in found]


def test_our_files_are_aligned_so_that_float32_needs_no_copy(written, of_mindspore, tmp_path, monkeypatch):
    assert all(address % ckpt.ALIGNMENT == 0 for address in addresses(written))
    assert any(address % 4 for address in addresses(of_mindspore))
    for size in (1, 100, 127, 128, 16383, 16384):  # where the numbers of the heading grow by a byte
        write_checkpoint(
            tmp_path / "x.ckpt",
            [("x", "UInt8", np.zeros(size, np.uint8)), ("y" * size, "UInt8", np.zeros(3, np.uint8))],
        )
        assert all(address % ckpt.ALIGNMENT == 0 for address in addresses(tmp_path / "x.ckpt"))
    assert not Checkpoint(written).float32("a.float32").flags.owndata
    monkeypatch.setattr(ckpt, "ALIGNMENT", 1)
    names = [(name + "." * i, *ARRAYS[name]) for i in range(4) for name in ("a.float32", "e.one")]
    write_checkpoint(tmp_path / "odd.ckpt", names)
    odd = Checkpoint(tmp_path / "odd.ckpt")
    assert any(not odd.view(name).flags.aligned for name in odd)
    for name, _, array in names:
        assert odd.float32(name).flags.aligned
        assert_same(odd.float32(name), array)


def test_a_change_to_what_was_read_does_not_reach_the_file(written):
    Checkpoint(written).float32("a.float32")[:] = 7
    assert_same(Checkpoint(written)["a.float32"], ARRAYS["a.float32"][1])


def test_bfloat16_goes_both_ways(of_mindspore, tmp_path):
    ours = Checkpoint(of_mindspore)
    assert ours.types["j.bfloat16"] == "BFloat16" and ours["j.bfloat16"].dtype == np.uint16
    write_checkpoint(tmp_path / "again.ckpt", [("x", "BFloat16", ours["j.bfloat16"])])
    theirs = ms.load_checkpoint(str(tmp_path / "again.ckpt"))["x"]
    assert theirs.dtype == ms.bfloat16
    assert_same(ours.float32("j.bfloat16"), theirs.astype(ms.float32).asnumpy())
    assert ours.float32("j.bfloat16")[0].tolist() == [1.0, -2.5]


@pytest.mark.parametrize(
    "kind, bits",
    [
        ("Float32", np.float32(0.5)),
        ("Float16", np.float16(0.5)),
        ("BFloat16", np.uint16(0x3F00)),
        ("Int32", np.int32(3)),
    ],
)
def test_a_scalar_stays_a_scalar_in_float32(tmp_path, kind, bits):
    write_checkpoint(tmp_path / "x.ckpt", [("temp", kind, bits)])
    widened = Checkpoint(tmp_path / "x.ckpt").float32("temp")
    assert isinstance(widened, np.ndarray) and widened.shape == () and widened.dtype == np.float32
    assert widened == (3 if kind == "Int32" else 0.5)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_an_empty_tensor_keeps_its_shape(tmp_path, shape):
    write_checkpoint(tmp_path / "x.ckpt", [("empty", "Float32", np.zeros(shape, np.float32))])
    assert Checkpoint(tmp_path / "x.ckpt")["empty"].shape == shape


def test_a_transposed_array_is_written_in_its_own_order(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    write_checkpoint(tmp_path / "x.ckpt", [("x", "Float32", array)])
    assert_same(Checkpoint(tmp_path / "x.ckpt")["x"], array)


def test_a_large_tensor_is_written_in_slices_that_both_read(tmp_path, monkeypatch):
    array = RANDOM.standard_normal((37, 11)).astype(np.float32)
    monkeypatch.setattr(ckpt, "SLICE_BYTES", 100)
    write_checkpoint(tmp_path / "x.ckpt", [("small", "Float32", array[0]), ("large", "Float32", array)])
    assert (tmp_path / "x.ckpt").read_bytes().count(b"large") == -(-array.nbytes // 100)
    assert_same(Checkpoint(tmp_path / "x.ckpt")["large"], array)
    assert_same(ms.load_checkpoint(str(tmp_path / "x.ckpt"))["large"].asnumpy(), array)


def test_mindspores_own_slices_are_read(tmp_path, monkeypatch):
    array = RANDOM.standard_normal((512, 3)).astype(np.float32)
    monkeypatch.setattr(serialization, "SLICE_SIZE", 1)  # KB
    ms.save_checkpoint([{"name": "large", "data": ms.Tensor(array)}], str(tmp_path / "x.ckpt"))
    assert (tmp_path / "x.ckpt").read_bytes().count(b"large") == 6
    assert_same(Checkpoint(tmp_path / "x.ckpt")["large"], array)


def test_remarks_of_a_trainer_are_no_tensors(tmp_path):
    ms.save_checkpoint(
        [{"name": "x", "data": ms.Tensor([1.0])}],
        str(tmp_path / "x.ckpt"),
        append_dict={"note": "hello", "epoch": 3},
    )
    assert set(Checkpoint(tmp_path / "x.ckpt")) == {"x", "epoch"}


def test_opening_a_file_reads_no_tensor(tmp_path):
    array = np.ones(4_000_000, np.float32)
    write_checkpoint(tmp_path / "x.ckpt", [("x", "Float32", array)])
    opened = Checkpoint(tmp_path / "x.ckpt")
    os.truncate(tmp_path / "x.ckpt", 1000)
    assert opened.shapes == {"x": (4_000_000,)}
    with pytest.raises(CheckpointError, match="became shorter"):
        opened["x"]


def test_asking_for_a_name_reads_no_tensor(written, monkeypatch):
    opened = Checkpoint(written)
    monkeypatch.setattr(Checkpoint, "__getitem__", lambda self, name: pytest.fail(f"{name} was read"))
    assert "a.float32" in opened and "z" not in opened
    with pytest.raises(pytest.fail.Exception, match="a.float32 was read"):  # control
        opened.get("a.float32")


def test_a_file_that_is_replaced_while_open_still_gives_its_own_tensors(tmp_path):
    path = tmp_path / "x.ckpt"
    write_checkpoint(path, [("x", "Int32", np.arange(5, dtype=np.int32))])
    opened = Checkpoint(path)
    write_checkpoint(path, ((name, opened.types[name], opened[name] * 2) for name in opened))
    assert opened["x"].tolist() == [0, 1, 2, 3, 4] and Checkpoint(path)["x"].tolist() == [0, 2, 4, 6, 8]


def test_the_file_is_closed_with_its_owner(written):
    opened = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("no /proc")
    files = [Checkpoint(written) for _ in range(20)]
    del files
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= opened


# ------------------------------------------------------------------------------------------------ broken file
def test_a_truncated_file_is_an_error_wherever_it_ends(tmp_path):
    arrays = [(f"layer.{i}.weight", "Float32", np.full((40, 3), i, np.float32)) for i in range(60)]
    write_checkpoint(tmp_path / "x.ckpt", arrays)
    data = (tmp_path / "x.ckpt").read_bytes()
    entry = [match.start() for match in re.finditer(rb"\n[\x80-\xff].\n.layer", data, re.DOTALL)]
    assert len(entry) == 60
    half = tmp_path / "half.ckpt"
    for end in [
        *range(1000, len(data), 1000),
        *range(1, 40),
        *range(entry[20] + 1, entry[20] + 40),
        len(data) - 1,
    ]:
        half.write_bytes(data[:end])
        # a whole number of tensors is a smaller valid file: the loader sees what is missing
        if end in entry:
            assert len(Checkpoint(half)) < 60
            continue
        with pytest.raises(CheckpointError, match="truncated|damaged|not a MindSpore .ckpt"):
            Checkpoint(half)


def test_a_truncated_file_says_so_and_what_to_do(written):
    os.truncate(written, written.stat().st_size - 5)
    with pytest.raises(
        CheckpointError,
        match=r"ours.ckpt is truncated: \d+ bytes are there, at least \d+ are needed; "
        "copy or convert it again",
    ):
        Checkpoint(written)


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"", "is empty"),
        (b"\x00" * 100, "not a MindSpore .ckpt but looks like something else"),
        (b"PK\x03\x04" + b"\x00" * 100, "looks like a torch file \\(zip\\); convert weights with"),
        (b"\x80\x02}q\x00.", "looks like a torch file \\(pickle\\)"),
        (b"<html>not found</html>", "looks like something else"),
        (b"\xff" * 100, "looks like something else"),
        (RANDOM.bytes(5000), "not a MindSpore .ckpt"),
        # a tensor without type and bytes
        (b"\n\x06\n\x01x\x12\x01\x99", "not a MindSpore .ckpt"),
    ],
    ids=["empty", "zeros", "zip", "pickle", "html", "ones", "noise", "hollow"],
)
def test_what_is_no_checkpoint_is_named(tmp_path, content, complaint):
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(CheckpointError, match=complaint):
        Checkpoint(tmp_path / "x.ckpt")


def test_flipped_bytes_never_end_in_another_kind_of_error(written):
    data = bytearray(written.read_bytes())
    for at in range(0, len(data), 3):
        flipped = data.copy()
        flipped[at] ^= 0x55
        written.write_bytes(flipped)
        try:
            {name: found.shape for name, found in Checkpoint(written).items()}
        except CheckpointError:
            pass


def test_a_tensor_whose_bytes_do_not_fit_its_shape_is_damage(tmp_path):
    # twice under one name
    write_checkpoint(tmp_path / "x.ckpt", [("x", "Float32", np.zeros(2, np.float32))] * 2)
    with pytest.raises(CheckpointError, match="damaged: x has 16 bytes, 8 expected"):
        Checkpoint(tmp_path / "x.ckpt")


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*none.ckpt"):
        Checkpoint(tmp_path / "none.ckpt")


# ------------------------------------------------------------------------------------------------ writing
def test_an_error_while_writing_leaves_the_old_file_as_it_was(written):
    before = written.read_bytes()

    def fails():
        yield "x", "Float32", np.zeros(1000, np.float32)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write_checkpoint(written, fails())
    assert written.read_bytes() == before
    assert os.listdir(written.parent) == ["ours.ckpt"]


def test_a_wrong_type_is_refused(tmp_path):
    with pytest.raises(TypeError, match="x: type Float32 needs float32, got float64"):
        write_checkpoint(tmp_path / "new.ckpt", [("x", "Float32", np.zeros(3))])
    assert os.listdir(tmp_path) == []


def test_the_folder_is_made(tmp_path):
    write_checkpoint(tmp_path / "a" / "b" / "x.ckpt", listed(ARRAYS))
    assert len(Checkpoint(tmp_path / "a" / "b" / "x.ckpt")) == len(ARRAYS)
