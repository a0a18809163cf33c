"""One call at a time: MindSpore neither compiles nor computes in two threads at once, it ends the process
instead.

Every call of a pipeline, a Trainer or a model takes the one lock of the process (:func:`exclusive`), so calls
from many threads wait for each other and give the answers that they give alone.  The lock is re-entrant: what
holds it may call all of them.  A callback of the user runs without it (:func:`unlocked`), and may wait for
other threads that need it.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable

DATA_THREAD = "mindblip2-data"  # the name of threads that make batches for the call that holds the lock


class ProcessLock:
    """A re-entrant lock that its holder can give up for a while."""

    def __init__(self):
        self._lock, self._depth, self._owner = threading.RLock(), 0, None

    def acquire(self):
        """Wait for the lock.  Raises RuntimeError in a thread that makes batches for the holder, which in its
        turn waits for them."""
        if not self._lock.acquire(blocking=False):
            if threading.current_thread().name.startswith(DATA_THREAD):
                raise RuntimeError(
                    "a data set called a model, a pipeline or a Trainer while a Trainer waits for its "
                    "samples, and both "
                    "would wait for ever: compute what the data set needs before the training, and store it"
                )
            self._lock.acquire()
        self._depth, self._owner = self._depth + 1, threading.get_ident()

    def release(self):
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
        self._lock.release()

    def __enter__(self):
        self.acquire()
        return self

    def __exit__(self, *error):
        self.release()

    @contextlib.contextmanager
    def released(self):
        """A block in which this thread does not hold the lock, however often it has taken it; nothing happens
        where it has not."""
        times = self._depth if self._owner == threading.get_ident() else 0
        for _ in range(times):
            self.release()
        try:
            yield
        finally:
            for _ in range(times):
                self.acquire()

    def after_fork(self):
        """In a new process, where only the thread that forked goes on: nobody else holds the lock."""
        times = self._depth if self._owner == threading.get_ident() else 0
        self.__init__()
        for _ in range(times):
            self.acquire()


LOCK = ProcessLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LOCK.after_fork)


def exclusive(function: Callable) -> Callable:
    """``function`` as a call that holds the lock.  MindSpore compiles such a method as if it were not
    decorated."""

    @functools.wraps(function)
    def locked(*args, **options):
        with LOCK:
            return function(*args, **options)

    return locked


def unlocked(callback: Callable | None) -> Callable | None:
    """A callback of the user as one that runs without the lock; None stays None."""
    if callback is None:
        return None

    @functools.wraps(callback, updated=())
    def free(*args, **options):
        with LOCK.released():
            return callback(*args, **options)

    return free
