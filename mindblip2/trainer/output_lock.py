"""At most one training writes into an output folder."""

import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mindblip2.config.schema import ConfigError
from mindblip2.distributed import comm
from mindblip2.file_io import FileError, read_json

logger = logging.getLogger("mindblip2")

LOCK = ".training.lock"
HELD = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)
_open_locks: set = set()


@contextlib.contextmanager
def training_lock(folder: str | os.PathLike) -> Iterator[None]:
    """A block in which no other training may write into ``folder``, which is made; evaluation and prediction
    may.

    The operating system releases the lock when the process that holds it ends, however it ends.  On a mesh
    the main process holds it, and all raise together.  Raises :class:`ConfigError` that names the training
    which is running.  Where the file system has no locks, a warning says so."""
    with contextlib.ExitStack() as stack:
        with comm.fail_together():
            if comm.is_main_process():
                stack.enter_context(_locked(Path(folder) / LOCK))
        yield


def one_at_a_time(train):
    """``train(trainer, …)`` under the :func:`training_lock` of the run's output folder."""

    @functools.wraps(train)
    def locked(trainer, *arguments):
        with training_lock(trainer.config.output_dir):
            return train(trainer, *arguments)

    return locked


@contextlib.contextmanager
def _locked(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+", encoding="utf-8")
    _open_locks.add(file)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                raise ConfigError(_refusal(path)) from None
            logger.warning(
                "%s: the file system has no locks (%s): see to it that one training at a time writes into %s",
                path,
                error.strerror,
                path.parent.absolute(),
            )
        file.truncate(0)
        file.write(
            json.dumps(
                {
                    "pid": os.getpid(),
                    "host": socket.gethostname(),
                    "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
                    "command": shlex.join(sys.argv),
                }
            )
            + "\n"
        )
        file.flush()
        yield
    finally:
        _open_locks.discard(file)
        with contextlib.suppress(OSError):  # where the file system has none
            fcntl.flock(file, fcntl.LOCK_UN)  # also for a worker that has just been forked
        file.close()


def _refusal(path):
    try:
        holder = "process {pid} on {host}, since {since}: {command}".format(**read_json(path, dict))
    except (FileError, OSError, KeyError):  # it is just being written
        holder = "which has not written its name yet"
    return (
        f"another training writes into {path.parent.absolute()} ({holder}).  Wait for its end, stop it, or "
        "choose another "
        "--output_dir"
    )


def _close_in_child():
    """A forked worker, which may outlive its parent, does not keep the lock."""
    while _open_locks:
        _open_locks.pop().close()


os.register_at_fork(after_in_child=_close_in_child)
