"""Start a program on several processes, as a user would with msrun, and wait no longer than a bounded
time."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def launch(processes, program, *arguments, logs, seconds=240):
    """Run ``program`` under msrun; returns its exit code and all that the processes have said."""
    shutil.rmtree(logs, ignore_errors=True)
    try:
        done = subprocess.run(
            msrun(processes, logs, program, *arguments),
            cwd=logs.parent,
            capture_output=True,
            text=True,
            timeout=seconds,
            env=environment(),
        )
        code, said = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        code, said = None, f"after {seconds} s: {error.stdout}"
    return code, said + "".join(
        f"\n== {log.name}\n{log.read_text(errors='replace')[-4000:]}"
        for log in sorted(logs.glob("worker_*.log"))
    )


def msrun(processes, logs, program, *arguments):
    return [
        str(BIN / "msrun"),
        f"--worker_num={processes}",
        f"--local_worker_num={processes}",
        f"--master_port={free_port()}",
        f"--log_dir={logs}",
        "--join=True",
        str(program),
        *map(str, arguments),
    ]


def environment():
    """msrun starts the "python" that it finds first."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", "")]),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "GLOG_v": "3",
    }


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
