"""One file over http(s), with an end to the waiting and to the bytes."""
import time
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

CHUNK = 1 << 16


def fetch(url, timeout, max_bytes):
    """The bytes behind an http(s) ``url``.

    ``timeout`` (seconds) bounds each wait for the server and, looked at after each receive, the whole body: urllib's
    own bounds only the waits, so that a server which drips bytes would hold us without end.  Raises TimeoutError;
    ConnectionError when the transfer breaks off; OSError for an HTTP error status, an unreachable or malformed
    address, or more than ``max_bytes`` bytes.  Each message holds the URL.
    """
    if not timeout or timeout <= 0:
        raise ValueError(f"timeout = {timeout!r}: expected seconds above 0")
    # Addresses copied from a browser may hold spaces or Chinese characters, which urllib refuses; '%' is kept as it is.
    address = quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    deadline = time.monotonic() + timeout
    try:
        request = Request(address, headers={"User-Agent": "mindblip2"})
        with urlopen(request, timeout=timeout) as response:
            return _read(response, url, deadline, max_bytes)
    except HTTPError as error:
        raise OSError(f"{url}: the server answered {error.code} {error.reason}; check the address in a browser, or "
                      "download the file and pass its path") from None
    except (TimeoutError, URLError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise TimeoutError(f"{url}: no complete answer within {timeout:g} s; pass a larger timeout=, or download "
                               "the file and pass its path") from None
        raise OSError(f"{url} cannot be reached: {reason}; check the address and the network (http_proxy, "
                      "https_proxy), or download the file and pass its path") from None
    except (HTTPException, ValueError) as error:    # ValueError: of the host name's encoding, a port that is no number
        raise OSError(f"{url}: {type(error).__name__} {error}; check the address") from None


def _read(response, url, deadline, max_bytes):
    length = response.headers.get("Content-Length") or ""
    total = int(length) if length.isdigit() else None
    data = bytearray()
    while total is None or len(data) < total:
        if max(len(data), total or 0) > max_bytes:
            size = f"{total} bytes" if total else f"at least {len(data)} bytes"
            raise OSError(f"{url} holds {size}, the limit for one picture is {max_bytes}; raise max_bytes=, or "
                          "download the file and pass its path")
        if time.monotonic() > deadline:
            raise TimeoutError
        chunk = response.read1(CHUNK)       # read1 returns after one receive, so the deadline is looked at in time
        if not chunk:
            break
        data += chunk
    if total is not None and len(data) < total:
        raise ConnectionError(f"{url}: the connection closed after {len(data)} of {total} bytes; try again")
    return bytes(data)
