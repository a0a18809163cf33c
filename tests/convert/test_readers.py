"""Foreign files are read lazily, whatever their wrapping, and nothing in them is run."""

import json
import os
import pickle

import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from mindblip2.checkpoint.ckpt import CheckpointError  # noqa: E402
from mindblip2.convert.readers.files import load_state_dict, read_state_dict  # noqa: E402
from mindblip2.convert.readers.lazy_state_dict import shape_of  # noqa: E402

STATE = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.ones(3, dtype=torch.bfloat16),
    "c": torch.tensor(0.07),
}


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


class Harmless:
    """A class of somebody's: no code to fear, but none of torch's types either."""


def assert_is_state(found):
    assert dict(found).keys() == STATE.keys() and len(found) == 3
    for name, value in STATE.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)
        assert shape_of(found, name) == tuple(value.shape)


# ------------------------------------------------------------------------------------------------ what is rea
@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 3, "optimizer": {"lr": [0.1, None]}},
        lambda s: {"state_dict": s},
        lambda s: {"module": s},
        lambda s: {"model": {"module": s}},
    ],
    ids=["bare", "model", "state_dict", "module", "nested"],
)
def test_state_dicts_are_found_in_their_wrapping(tmp_path, wrap, zip_format):
    torch.save(wrap(STATE), tmp_path / "x.pth", _use_new_zipfile_serialization=zip_format)
    assert_is_state(read_state_dict(tmp_path / "x.pth"))


@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])
def test_load_state_dict_returns_what_torch_load_returns(tmp_path, zip_format):
    path, marker = tmp_path / "x.pth", tmp_path / "marker"
    torch.save({"model": STATE}, path, _use_new_zipfile_serialization=zip_format)
    expected, found = torch.load(path, weights_only=True)["model"], load_state_dict(path)
    assert type(found) is dict and list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)
    torch.save({"model": STATE, "extra": Hostile(marker)}, path)  # negative control: code is refused, not run
    with pytest.raises(CheckpointError, match="REFUSED"):
        load_state_dict(path)
    assert not marker.exists()


def test_safetensors_alone_in_a_folder_and_in_shards(tmp_path):
    safetensors_torch.save_file(STATE, tmp_path / "model.safetensors")
    assert_is_state(read_state_dict(tmp_path / "model.safetensors"))
    assert_is_state(read_state_dict(tmp_path))
    for name in STATE:
        safetensors_torch.save_file({name: STATE[name]}, tmp_path / f"part-{name}.safetensors")
    index = {"weight_map": {name: f"part-{name}.safetensors" for name in STATE}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model.safetensors").unlink()
    assert_is_state(read_state_dict(tmp_path / "model.safetensors.index.json"))
    assert_is_state(read_state_dict(tmp_path))
    (tmp_path / "part-b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="names the shard part-b.safetensors, which is not in"):
        read_state_dict(tmp_path)


def test_a_folder_with_pytorch_model_bin(tmp_path):
    torch.save(STATE, tmp_path / "pytorch_model.bin")
    assert_is_state(read_state_dict(tmp_path))


# ------------------------------------------------------------------------------------------------ what is ref
@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "hide",
    [
        lambda h: h,
        lambda h: {"model": STATE, "extra": h},
        lambda h: {"model": {**STATE, "d": h}},
        lambda h: {"model": STATE, "args": {"deep": [1, (2, {"er": [h]})]}},
    ],
    ids=["bare", "beside", "among", "nested"],
)
def test_code_is_refused_and_not_run(tmp_path, hide, zip_format):
    marker = tmp_path / "marker"
    torch.save(hide(Hostile(marker)), tmp_path / "x.pth", _use_new_zipfile_serialization=zip_format)
    with pytest.raises(
        CheckpointError,
        match=r"REFUSED: .*x.pth holds more than tensors \(GLOBAL posix.mkdir\), which "
        "could run code; nothing of it was run",
    ):
        read_state_dict(tmp_path / "x.pth")
    assert not marker.exists()
    torch.load(tmp_path / "x.pth", weights_only=False)
    assert marker.exists()  # the control: the file was armed


@pytest.mark.parametrize("content", [{"a": Harmless()}, {"a": getattr}, {"a": torch.nn.Linear(2, 2)}])
def test_objects_that_are_no_tensors_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="REFUSED"):
        read_state_dict(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_is_refused_or_no_torch_file(tmp_path, protocol):
    marker = tmp_path / "marker"
    (tmp_path / "x.pth").write_bytes(pickle.dumps({"a": Hostile(marker)}, protocol))
    with pytest.raises(CheckpointError, match="REFUSED|no torch file"):
        read_state_dict(tmp_path / "x.pth")
    assert not marker.exists()


# ------------------------------------------------------------------------------------------------ what is bro
@pytest.mark.parametrize("zip_format", [True, False], ids=["zip", "legacy"])
def test_a_truncated_file_is_an_error_wherever_it_ends(tmp_path, zip_format):
    torch.save({"model": STATE}, tmp_path / "x.pth", _use_new_zipfile_serialization=zip_format)
    data = (tmp_path / "x.pth").read_bytes()
    for end in range(1, len(data), max(1, len(data) // 40)):
        (tmp_path / "x.pth").write_bytes(data[:end])
        with pytest.raises(
            CheckpointError, match="truncated, damaged or no torch file|damaged or no torch file|REFUSED"
        ):
            read_state_dict(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"", "is empty"),
        (b"hello world, this is text", "no torch file"),
        (b"<html>404</html>", "no torch file"),
        (b"\x00" * 1000, "no torch file"),
        (b"version https://git-lfs.github.com/spec/v1", "no torch file"),
    ],
)
def test_other_files_are_named_as_such(tmp_path, content, complaint):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=complaint):
        read_state_dict(tmp_path / "x.pth")


def test_a_truncated_safetensors_file_is_named(tmp_path):
    safetensors_torch.save_file(STATE, tmp_path / "x.safetensors")
    os.truncate(tmp_path / "x.safetensors", 40)
    with pytest.raises(CheckpointError, match="x.safetensors is truncated or no safetensors file"):
        read_state_dict(tmp_path / "x.safetensors")


@pytest.mark.parametrize("content", [[torch.ones(2)], {}, {"a": 3}, torch.ones(2), {"model": {"a": [1]}}])
def test_torch_files_without_a_state_dict_are_named(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="holds no state dict: expected a mapping of names to tensors"):
        read_state_dict(tmp_path / "x.pth")


def test_missing_files_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*none.pth"):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(
        FileNotFoundError, match="holds no model.safetensors, pytorch_model.bin, index or shards of these"
    ):
        read_state_dict(tmp_path)
