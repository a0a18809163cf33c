"""Quiet, modest and clean; set before MindSpore or torch is imported, and inherited by commands that tests
start."""

import gc
import os
import shutil
import sys
import tempfile

import pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
# a processor for each: MindSpore's kernels wait for all their threads, and these would wait for the other
# worker's
if WORKER:
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        own = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {own[int(WORKER[2:]) % len(own)]})
DROPPINGS = tempfile.mkdtemp(prefix="mindblip2-tests-")

# rank_0/om/analyze_fail.ir, otherwise in the working directory
os.environ["MS_OM_PATH"] = DROPPINGS
os.environ["MS_COMPILER_CACHE_PATH"] = DROPPINGS  # kernel_meta
for name, value in {
    "GLOG_v": "3",  # MindSpore's errors, not its warnings
    "OMP_NUM_THREADS": "2",
    "MKL_NUM_THREADS": "2",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(name, value)


def pytest_unconfigure():
    shutil.rmtree(DROPPINGS, ignore_errors=True)


@pytest.fixture(autouse=True)
def same_mode():
    """A test that runs a command in graph mode leaves it to no other: compiling each small model would take
    minutes."""
    before = sys.modules["mindspore"].get_context("mode") if "mindspore" in sys.modules else 1
    yield
    if "mindspore" in sys.modules:
        sys.modules["mindspore"].set_context(mode=before)


@pytest.fixture(autouse=True, scope="module")
def models_of_a_file_are_gone():
    """A model whose graphs refer to it waits for the garbage collector, which in a process of this size
    seldom comes by itself."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small stage 2 on the disk, see ``stage2_small.write``."""
    import mindspore as ms

    from tests import stage2_small

    ms.set_context(mode=ms.PYNATIVE_MODE)
    return stage2_small.write(tmp_path_factory.mktemp("small"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """In PyNative, and in a folder of its own."""
    import mindspore as ms

    ms.set_context(mode=ms.PYNATIVE_MODE)
    monkeypatch.chdir(tmp_path)
