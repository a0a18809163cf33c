"""A streamed run that was stopped goes on, and gives the rows of one that was not."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mindblip2.parity import streaming  # noqa: E402
from mindblip2.parity.__main__ import main, parser  # noqa: E402
from mindblip2.parity.result_sinks import Progress  # noqa: E402
from mindblip2.parity.run import run  # noqa: E402
from tests.parity.conftest import tiny_config  # noqa: E402

pytestmark = pytest.mark.usefixtures("pynative")


@pytest.fixture
def command(tmp_path):
    small = tiny_config().replace(
        qformer_config={"num_hidden_layers": 1}, vision_config={"num_hidden_layers": 3}
    )
    config = small.save_pretrained(tmp_path)
    return ["run", "--config", str(config), "--case", "vit*", "--case", "chained vit*", "--case", "itm"]


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_where_it_was(command, tmp_path, monkeypatch):
    whole = run(parser().parse_args(command))
    resumed = parser().parse_args([*command, "--resume", str(tmp_path / "progress")])
    slide = streaming.Window.slide

    def stop(self, i):
        if i == 2:
            raise Stopped
        slide(self, i)

    monkeypatch.setattr(streaming.Window, "slide", stop)
    with pytest.raises(Stopped):
        run(resumed)
    slid = []
    monkeypatch.setattr(streaming.Window, "slide", lambda self, i: slid.append(i) or slide(self, i))
    assert run(resumed) == whole and slid == [2]
    # the control: what is not stored would be missing
    (tmp_path / "progress" / "vision" / "rows.jsonl").write_text("")
    assert {row.name for row in run(resumed)} < {row.name for row in whole}


def test_progress_belongs_to_one_command(command, tmp_path, capsys):
    Progress(tmp_path / "progress" / "vision", {"config": "another"})
    assert main([*command, "--resume", str(tmp_path / "progress")]) == 2
    assert "holds the progress of another run" in capsys.readouterr().err


def test_half_a_line_is_done_again(tmp_path):
    from mindblip2.parity.compare import Row

    first = Progress(tmp_path, {})
    rows = [Row("a", float("inf"), 0.0, 0.0, 1.0, 1.0, ("all zeros",))]
    first.once("a", lambda: rows)
    first.once("b", lambda: rows)
    text = first.lines.read_text()
    first.lines.write_text(text[:-20])
    again = Progress(tmp_path, {})
    assert set(again.rows) == {"a"} and first.lines.read_text().count("\n") == 1
    assert [row.name for row in again.once("a", lambda: [])] == ["a"]


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("rows.jsonl", b"null\n", "rows.jsonl is damaged in line 1"),
        ("rows.jsonl", b"[" * 100_000 + b"\n", "rows.jsonl is damaged in line 1"),
        ("rows.jsonl", b'{"name": "a", "rows": [{"name": 1}]}\n', "rows.jsonl is damaged in line 1"),
        ("rows.jsonl", b"\xff\n", "rows.jsonl"),
        ("run.json", b"\xff", "run.json"),
    ],
)
def test_b12_damaged_progress_is_one_line(tmp_path, file, content, words):
    Progress(tmp_path, {})
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=words) as raised:
        Progress(tmp_path, {})
    assert "\n" not in str(raised.value)


def test_b12_a_damaged_chain_is_one_line(tmp_path):
    first, sides = Progress(tmp_path, {}), [np.ones(3)] * 3
    first.leave(2, sides)
    assert first.chain()[0] == 2  # the control
    for broken in ({"done": np.array(-1)}, {"done": np.array([1, 2])}, {"ours": np.ones(4)}):
        np.savez(
            first.state, **{"done": 2, "truth": sides[0], "torch32": sides[1], "ours": sides[2]} | broken
        )
        with pytest.raises(ValueError, match="chain.npz is damaged"):
            first.chain()
    first.state.write_bytes(b"PK")
    with pytest.raises(ValueError, match="chain.npz is damaged"):
        first.chain()
