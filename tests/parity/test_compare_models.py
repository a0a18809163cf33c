"""Do two files hold the same model? Across formats, names and dtypes; and where they differ."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mindblip2.checkpoint.ckpt import Checkpoint, write_checkpoint  # noqa: E402
from mindblip2.parity.__main__ import main  # noqa: E402
from tests.parity.conftest import FILES, TINY, tiny_config  # noqa: E402


@pytest.fixture
def files(ckpts, tmp_path):
    """LAVIS's, ours of it, and a function that writes ours with changes."""
    stored = Checkpoint(ckpts[FILES[0]])

    def changed(change):
        kept = {name: change(name, stored[name]) for name in stored}
        write_checkpoint(
            tmp_path / "changed.ckpt",
            ((name, "Float32", value) for name, value in kept.items() if value is not None),
        )
        return str(tmp_path / "changed.ckpt")

    return str(TINY / FILES[0]), str(ckpts[FILES[0]]), changed


def told(capsys, *paths):
    code = main(["weights", *paths])
    return code, capsys.readouterr().out


def test_a_file_and_what_was_converted_from_it(files, capsys):
    theirs, ours, _ = files
    for pair in ((theirs, ours), (ours, theirs), (ours, ours), (theirs, theirs)):
        code, said = told(capsys, *pair)
        assert code == 0 and said.endswith("SAME: both files hold the same model\n")
    assert "170 tensors are equal" in told(capsys, theirs, ours)[1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_is_no_other_model(files, capsys, tmp_path, dtype):
    from mindblip2.convert.convert_weight import to_mindspore

    to_mindspore(TINY / FILES[0], tmp_path / "half.ckpt", config=tiny_config(), dtype=dtype)
    code, said = told(capsys, files[0], str(tmp_path / "half.ckpt"))
    assert (
        code == 1
        and f"are equal but for rounding to {dtype}" in said
        and said.endswith("SAME BUT FOR ROUNDING\n")
    )


def test_a_difference_is_named(files, capsys):
    theirs, ours, changed = files
    one = changed(lambda name, value: value + np.float32(1e-3) * (name == "vit.blocks.1.norm1.beta"))
    for other in (theirs, ours):
        code, said = told(capsys, other, one)
        assert (
            code == 1 and "1 differ: vit.blocks.1.norm1.beta: rms " in said and said.endswith("DIFFERENT\n")
        )


def test_what_only_one_file_has_is_named_on_its_side(files, capsys):
    theirs, ours, changed = files
    less = changed(lambda name, value: None if name == "temp" else value)
    assert f"1 are only in {theirs}: temp" in told(capsys, theirs, less)[1]
    assert f"1 are only in {theirs}: temp" in told(capsys, less, theirs)[1]
    assert f"1 are only in {ours}: temp" in told(capsys, less, ours)[1]
    shorter = changed(lambda name, value: value[:-1] if name == "itm_head.bias" else value)
    assert "1 have other shapes: itm_head.bias" in told(capsys, theirs, shorter)[1]


def test_bad_files_are_named(files, capsys, tmp_path):
    (tmp_path / "cut.pth").write_bytes((TINY / FILES[0]).read_bytes()[:9999])
    for bad in (str(tmp_path / "cut.pth"), str(tmp_path / "absent.ckpt")):
        assert main(["weights", bad, files[1]]) == 2
        assert capsys.readouterr().err.startswith("error: ")
