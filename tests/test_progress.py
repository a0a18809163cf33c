"""``mindblip2.progress``: bars are for terminals."""

import io
import sys

import pytest

from mindblip2 import progress as module
from mindblip2.progress import ProgressLines, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so, as a list of one."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_c10_a_log_gets_whole_lines_at_intervals(monkeypatch, clock):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    bar = progress(range(10), "train", "step")
    for _ in bar:
        bar.set_postfix_str("itc 1.2")
        clock[0] += 20
    assert log.getvalue() == (
        "train: step 2 of 10 (20%), 00:40, about 02:40 left; itc 1.2\n"
        "train: step 4 of 10 (40%), 01:20, about 02:00 left; itc 1.2\n"
        "train: step 6 of 10 (60%), 02:00, about 01:20 left; itc 1.2\n"
        "train: step 8 of 10 (80%), 02:40, about 00:40 left; itc 1.2\n"
        "train: step 10 of 10 (100%), 03:20; itc 1.2\n"
    )


def test_c10_a_short_task_leaves_no_line_and_a_resumed_one_counts_on(monkeypatch, clock):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    assert list(progress([1, 2], "see", "batch")) == [1, 2]
    assert log.getvalue() == ""
    with progress(total=100, desc="match", unit="pair", initial=60) as bar:
        clock[0] += 40
        bar.update(20)
        clock[0] += 1
        bar.update(5)
    assert (
        log.getvalue()
        == "match: pair 80 of 100 (80%), 00:40, about 00:40 left\nmatch: pair 85 of 100 (85%), 00:41, about 00:24 left\n"
    )


def test_c10_what_is_stopped_says_how_far_it_came(monkeypatch, clock):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with pytest.raises(KeyError):
        for number in progress(iter(range(10)), "write", "batch"):
            clock[0] += 20
            if number == 3:
                raise KeyError
    assert log.getvalue() == "write: batch 2, 00:40\nwrite: batch 3, 01:20\n"


def test_c10_a_terminal_gets_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = progress(range(3), "train", "step")
    assert not isinstance(bar, ProgressLines) and list(bar) == [0, 1, 2]
    assert "\r" in terminal.getvalue() and "3/3" in terminal.getvalue()
    silent = Terminal()
    monkeypatch.setattr(sys, "stderr", silent)
    assert list(progress(range(3), "train", "step", disable=True)) == [0, 1, 2] and silent.getvalue() == ""
