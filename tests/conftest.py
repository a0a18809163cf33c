"""Quiet, modest and clean; set before MindSpore or torch is imported, and inherited by commands that tests start."""
import os
import shutil
import tempfile

DROPPINGS = tempfile.mkdtemp(prefix="mindblip2-tests-")

os.environ["MS_OM_PATH"] = DROPPINGS                # rank_0/om/analyze_fail.ir, otherwise in the working directory
os.environ["MS_COMPILER_CACHE_PATH"] = DROPPINGS    # kernel_meta
for name, value in {"GLOG_v": "3",                  # MindSpore's errors, not its warnings
                    "OMP_NUM_THREADS": "2",
                    "MKL_NUM_THREADS": "2",
                    "TOKENIZERS_PARALLELISM": "false",
                    "HF_HUB_OFFLINE": "1"}.items():
    os.environ.setdefault(name, value)


def pytest_unconfigure():
    shutil.rmtree(DROPPINGS, ignore_errors=True)
