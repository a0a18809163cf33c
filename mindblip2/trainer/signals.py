"""SIGTERM and Ctrl-C in a training, and how an interrupted training goes on."""

import os
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

from mindblip2.distributed import comm

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_SIGNAL = 1.0  # seconds: ``timeout`` and terminals may send one signal twice
WORKER_GRACE = 600  # seconds for which a worker process outlives SIGTERM


class StopSignals:
    """A block in which the first SIGINT or SIGTERM is noted, so that the training can end after the step in
    hand; a second one, more than a second later, raises at once: KeyboardInterrupt for SIGINT,
    SystemExit(143) for SIGTERM.  Afterwards the handlers are those that were there before.  Does nothing
    outside of the main thread, where Python allows no handlers, or for a signal that is ignored."""

    def __init__(self):
        self.received, self.time, self.pid, self.before = None, 0.0, os.getpid(), {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error):
        for number, before in self.before.items():
            # None: of a library, not of Python
            signal.signal(number, signal.SIG_DFL if before is None else before)

    def agreed(self):
        """The signal that one of the processes has received, or None; all processes call this at the same
        step."""
        for number in self.before:  # MindSpore's data sets may put their own in C in their place
            signal.signal(number, self._handle)
        if comm.mesh.size == 1:
            return self.received
        flags = comm.host_all_reduce(np.array([self.received == number for number in SIGNALS], np.float32))
        return next((number for number, flag in zip(SIGNALS, flags) if flag), None)

    def _handle(self, number, frame):
        # a forked worker: it ends with its parent, whose step in hand may need it
        if os.getpid() != self.pid:
            signal.alarm(WORKER_GRACE)
        elif self.received is None:
            self.received, self.time = signal.Signals(number), time.monotonic()
            os.write(
                2,
                f"\n{self.received.name}: the step in hand is finished and a checkpoint saved; a second signal ends at once\n".encode(),
            )  # not print, which may be interrupted within itself
        elif time.monotonic() - self.time > SAME_SIGNAL:
            raise error_of(number)


def error_of(number):
    """What ends a training that was stopped by a signal: its exit code is 130 or 143."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def how_to_go_on(resume=True, **changes):
    """The command that goes on: this one with ``resume_training`` and the ``changes`` of other keys.
    ``resume``: True, the folder of a checkpoint, or None to start anew."""
    settings = {
        **({} if resume is None else {"resume_training": "true" if resume is True else str(resume)}),
        **{key.replace("__", "."): f"{value:g}" for key, value in changes.items()},
    }
    flags = [word for key, value in settings.items() for word in (f"--{key}", value)]
    if Path(sys.argv[0]).name != "run_blip2.py":
        return (
            "the same call with "
            + " and ".join(f"{key} = {value}" for key, value in settings.items())
            + " in its configuration"
        )
    if comm.mesh.size > 1:
        return f"the same msrun command with {shlex.join(flags)}"
    words = iter(sys.argv)
    kept = []
    for word in words:
        if word.startswith("--") and word[2:] in settings:
            next(words, None)  # its value
        elif not word.startswith(tuple(f"--{key}=" for key in settings)):
            kept.append(word)
    return shlex.join(["python", *kept, *flags])
