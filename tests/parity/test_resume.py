"""A streamed run that was stopped goes on, and gives the rows of one that was not."""

import pytest

torch = pytest.importorskip("torch")

from parity import stream  # noqa: E402
from parity.__main__ import main, parser  # noqa: E402
from parity.desk import Progress  # noqa: E402
from parity.run import run  # noqa: E402

from .conftest import tiny_config  # noqa: E402

pytestmark = pytest.mark.usefixtures("pynative")


@pytest.fixture
def command(tmp_path):
    small = tiny_config().replace(qformer_config={"num_hidden_layers": 1}, vision_config={"num_hidden_layers": 3})
    config = small.save_pretrained(tmp_path)
    return ["run", "--config", str(config), "--case", "vit*", "--case", "chained vit*", "--case", "itm"]


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_where_it_was(command, tmp_path, monkeypatch):
    whole = run(parser().parse_args(command))
    resumed = parser().parse_args([*command, "--resume", str(tmp_path / "progress")])
    slide = stream.Window.slide

    def stop(self, i):
        if i == 2:
            raise Stopped
        slide(self, i)
    monkeypatch.setattr(stream.Window, "slide", stop)
    with pytest.raises(Stopped):
        run(resumed)
    slid = []
    monkeypatch.setattr(stream.Window, "slide", lambda self, i: slid.append(i) or slide(self, i))
    assert run(resumed) == whole and slid == [2]
    (tmp_path / "progress" / "vision" / "rows.jsonl").write_text("")     # the control: what is not stored would be missing
    assert {row.name for row in run(resumed)} < {row.name for row in whole}


def test_progress_belongs_to_one_command(command, tmp_path, capsys):
    Progress(tmp_path / "progress" / "vision", {"config": "another"})
    assert main([*command, "--resume", str(tmp_path / "progress")]) == 2
    assert "holds the progress of another run" in capsys.readouterr().err


def test_half_a_line_is_done_again(tmp_path):
    from parity.compare import Row
    first = Progress(tmp_path, {})
    rows = [Row("a", float("inf"), 0.0, 0.0, 1.0, 1.0, ("all zeros",))]
    first.once("a", lambda: rows)
    first.once("b", lambda: rows)
    text = first.lines.read_text()
    first.lines.write_text(text[:-20])
    again = Progress(tmp_path, {})
    assert set(again.rows) == {"a"} and first.lines.read_text().count("\n") == 1
    assert [row.name for row in again.once("a", lambda: [])] == ["a"]
