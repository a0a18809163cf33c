"""What a reader may use while it reads a damaged file: two seconds, one gigabyte, no program, no connection,
no file."""

import contextlib
import os
import resource
import signal
import sys

SECONDS, BYTES = 2, 1 << 30
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "socket.connect",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "shutil.rmtree",
)
_seen = None  # the forbidden events of the block; None outside of one


class TookTooLong(BaseException):
    """The reader did not end in time.  No Exception, so that a reader that catches all of these does not
    catch it."""


def _watch(event, args):
    if _seen is None:
        return
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if event in FORBIDDEN or writes:
        _seen.append(f"{event} {args!r}"[:200])


sys.addaudithook(_watch)  # cannot be taken away again; without a block it does nothing


@contextlib.contextmanager
def limited():
    """A block with these limits; yields the list of what it did that a reader must not do."""
    global _seen
    address_space = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, _alarm)
    resource.setrlimit(resource.RLIMIT_AS, (address_space + BYTES, before[1]))
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    _seen = []
    try:
        yield _seen
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _seen = None
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, handler)


def _alarm(*_):
    raise TookTooLong
