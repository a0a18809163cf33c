"""No process of a feed outlives its epoch or its run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mindblip2.data.loader import Feed
from mindblip2.data.processor import Blip2Processor

ROOT = Path(__file__).resolve().parents[2]
LINUX = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="processes are seen in /proc, which only Linux has"
)


def children(pid):
    """Living child processes."""
    stats = [path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
    fields = [text.rpartition(")")[2].split() for text in stats]
    return [f for f in fields if int(f[1]) == pid and f[0] != "Z"]


def gone(pids, seconds=20):
    """Whether none of the processes lives on."""
    end = time.time() + seconds
    while time.time() < end:
        alive = [
            pid
            for pid in pids
            if Path(f"/proc/{pid}/stat").exists()
            and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        ]
        if not alive:
            return True
        time.sleep(0.1)
    return False


@LINUX
def test_a_dropped_epoch_ends_its_processes():
    rows = [{"image": np.zeros((9, 9, 3), np.uint8), "caption": "a one"}] * 14
    before = len(children(os.getpid()))
    batches = Feed(rows, Blip2Processor.from_pretrained("blip2_digits"), 2, 5, workers=2).epoch(0)
    next(batches)
    assert len(children(os.getpid())) >= before + 1
    batches.close()
    end = time.time() + 10
    while len(children(os.getpid())) > before and time.time() < end:
        time.sleep(0.1)
    assert len(children(os.getpid())) == before


KILLED = """
import os, numpy as np
from mindblip2.data.loader import Feed
from mindblip2.data.processor import Blip2Processor
rows = [{"image": np.zeros((9, 9, 3), np.uint8), "caption": "a one"}] * 4000
batches = Feed(rows, Blip2Processor.from_pretrained("blip2_digits"), 2, 0, workers=2).epoch(0)
next(batches)
parents = {p: open(f"/proc/{p}/stat").read().rpartition(")")[2].split()[1] for p in os.listdir("/proc") if p.isdigit()}
print(*(child for child, parent in parents.items() if parent == str(os.getpid())), flush=True)
input()
sum(1 for batch in batches)
"""


@pytest.fixture
def run():
    """A process in the middle of an epoch, and the ids of its workers."""
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    run = subprocess.Popen([sys.executable, "-c", KILLED], cwd=ROOT, text=True, **pipes)
    pids = [int(pid) for pid in run.stdout.readline().split()]
    assert len(pids) >= 2 and not gone(pids, 0.3)  # control: they do live
    yield run, pids
    run.kill()
    run.communicate()


@LINUX
def test_a_killed_run_leaves_no_processes(run):
    run, pids = run
    run.send_signal(signal.SIGKILL)
    assert gone(pids)


@LINUX
def test_a_killed_worker_ends_the_run_and_the_other_workers(run):
    run, pids = run
    os.kill(pids[0], signal.SIGKILL)
    _, words = run.communicate("go on\n", timeout=30)  # no hanging
    assert run.returncode != 0 and f"Dataset worker process {pids[0]} was killed" in words
    assert gone(pids)
