"""One file over http(s): one deadline for everything, a limit for the bytes, and no way into the private
network.

The address of a picture may come from a stranger (a data set, a web form).  So what it resolves to is checked
before the connection is made to exactly that address, again after each redirect: no name can point at a
public address for the check and at another for the connection.
"""

import base64
import contextlib
import http.client
import io
import ipaddress
import os
import socket
import ssl
import threading
import time
from urllib.parse import quote, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

CHUNK = 1 << 16
REDIRECTS = 10
MOVED = (301, 302, 303, 307, 308)
ALLOW_PRIVATE = "MINDBLIP2_ALLOW_PRIVATE"  # environment variable: 1 opens private addresses too
AZURE = "168.63.129.16"  # its metadata service has a public address; the others' are link-local or private
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class FetchError(OSError):
    """A download that failed; the message says why and what to do, without the address."""


def fetch(url: str, timeout: float, max_bytes: int, allow_private: bool | None = None) -> bytes:
    """The bytes behind an http(s) ``url``.

    ``timeout`` (seconds) is for the whole call: name, connection, TLS, head, redirects (at most ten) and
    body.  Addresses of this machine, of private networks, link-local (cloud metadata), multicast and reserved
    ones are refused unless ``allow_private``; None: what the environment variable MINDBLIP2_ALLOW_PRIVATE
    says, 1 or 0.  Through a proxy (http_proxy, https_proxy, no_proxy), which resolves names itself, addresses
    in numbers and localhost are refused.

    Raises TimeoutError; PermissionError for a private address; ConnectionError when the transfer breaks off;
    OSError for an HTTP error status, an unreachable or malformed address, or more than ``max_bytes`` bytes.
    Each message holds the URL."""
    deadline, name = _Deadline(timeout), url
    if allow_private is None:
        allow_private = _private_allowed()
    try:
        address = _quoted(url)
        for _ in range(REDIRECTS + 1):
            with _connection(address, deadline, allow_private) as (sock, headers, target):
                response = _answer(_Stream(sock, deadline), target, headers)
                location = response.getheader("Location")
                if response.status not in MOVED or not location:
                    return _body(response, max_bytes)
            address = _quoted(urljoin(address, location))
            name = f"{url} (redirected to {address})"
        raise FetchError(
            f"more than {REDIRECTS} redirects; check the address in a browser, or download the file and pass "
            "its path"
        )
    except TimeoutError:
        raise TimeoutError(
            f"{name}: no complete answer within {timeout:g} s; pass a larger timeout=, or download the file "
            "and pass its "
            "path"
        ) from None
    except PermissionError as error:
        raise PermissionError(f"{name} {error}") from None
    except ConnectionRefusedError as error:
        raise OSError(
            f"{name} cannot be reached: {error}; check the address, or download the file and pass its path"
        ) from None
    except (ConnectionError, http.client.IncompleteRead) as error:
        raise ConnectionError(f"{name}: the connection broke off: {error}; try again") from None
    except FetchError as error:
        raise OSError(f"{name}: {error}") from None
    except OSError as error:
        raise OSError(
            f"{name} cannot be reached: {error}; check the address and the network (http_proxy, "
            "https_proxy), or download the "
            "file and pass its path"
        ) from None
    except http.client.HTTPException as error:
        raise OSError(
            f"{name}: the server's answer is not HTTP ({type(error).__name__} {error}); check the address"
        ) from None
    except ValueError as error:  # of the host name's encoding, a port that is no number
        raise OSError(f"{name}: {error}; check the address") from None


class _Deadline:
    """The end of a call."""

    def __init__(self, seconds):
        self.end = time.monotonic() + seconds

    def left(self):
        """Seconds until it; raises TimeoutError where there are none."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _Stream(io.RawIOBase):
    """A socket as http.client reads it, each of whose waits ends at the deadline."""

    def __init__(self, sock, deadline):
        self.sock, self.deadline = sock, deadline

    def makefile(self, mode):
        return io.BufferedReader(self)

    def readable(self):
        return True

    def readinto(self, buffer):
        self.sock.settimeout(self.deadline.left())
        return self.sock.recv_into(buffer)

    def sendall(self, data):
        self.sock.settimeout(self.deadline.left())
        self.sock.sendall(data)


# ------------------------------------------------------------------------------------------------ addresses
def _quoted(url):
    """An address as it is sent.  One copied from a browser may hold spaces or Chinese characters; '%' is kept
    as it is."""
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https"):
        raise FetchError(
            f"{parts.scheme}: is not followed, expected http: or https:; download the file and pass its path"
        )
    if parts.username is not None:
        raise FetchError(
            "an address with a user's name and password is not opened; download the file and pass its path"
        )
    if not parts.hostname:
        raise FetchError("names no host; check the address")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode()
    host = f"[{host}]" if ":" in host else host
    host += "" if parts.port is None else f":{parts.port}"
    rest = quote(parts._replace(scheme="", netloc="", fragment="").geturl(), safe="%/:=&?~#+!$,;'@()*[]")
    return f"{parts.scheme.lower()}://{quote(host, safe='[]:.%-_~')}{rest}"


def _private_allowed():
    value = os.environ.get(ALLOW_PRIVATE, "0")
    if value not in ("0", "1"):
        raise ValueError(f"environment variable {ALLOW_PRIVATE} = {value!r}: expected 1 or 0")
    return value == "1"


def _check_public(host):
    """Raises PermissionError for an address in numbers that is not public."""
    ip = ipaddress.ip_address(host.partition("%")[0])
    if ip.version == 6:  # the IPv4 address that an IPv6 one stands for
        ip = (
            ip.ipv4_mapped
            or ip.sixtofour
            or (ipaddress.ip_address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else ip)
        )
    if not ip.is_global or ip.is_multicast or str(ip) == AZURE:
        raise PermissionError(
            f"is at {host}, an address of this machine, a private network or a cloud's metadata service, "
            "none of which "
            "is opened by default; if you trust it, pass allow_private=True to load_image or set "
            f"{ALLOW_PRIVATE}=1"
        )


def _check_public_name(host):
    """The same for a host that a proxy will resolve."""
    if host == "localhost" or host.endswith(".localhost"):
        _check_public("127.0.0.1")
    try:
        numbers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except OSError:  # a name
        return
    for *_, address in numbers:
        _check_public(address[0])


def _resolved(host, port, deadline):
    """getaddrinfo, which knows no time-out, until the deadline."""
    result = []

    def resolve():
        try:
            result.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            result.append(error)

    thread = threading.Thread(target=resolve, daemon=True)
    thread.start()
    thread.join(deadline.left())
    if not result:
        raise TimeoutError
    if isinstance(result[0], Exception):
        raise result[0]
    return result[0]


# ------------------------------------------------------------------------------------------------ the connect
@contextlib.contextmanager
def _connection(address, deadline, allow_private):
    """(socket, headers that it needs, what to ask for) for an address, directly or through the proxy of the
    environment."""
    parts = urlsplit(address)
    tls, host = parts.scheme == "https", parts.hostname
    port = parts.port or (443 if tls else 80)
    target = parts._replace(scheme="", netloc="", fragment="", path=parts.path or "/").geturl()
    headers = {
        "Host": parts.netloc,
        "User-Agent": "mindblip2",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    proxy = None if proxy_bypass(host) else getproxies().get(parts.scheme)
    if proxy is None:
        sock = _connected(host, port, deadline, not allow_private)
    else:
        if not allow_private:
            _check_public_name(host)
        via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        sock = _connected(via.hostname, via.port or 80, deadline, False)
        login = {}
        if via.username:
            pair = f"{unquote(via.username)}:{unquote(via.password or '')}"
            login = {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
    try:
        if proxy is not None and tls:
            tunnel = _answer(
                _Stream(sock, deadline), f"{host}:{port}", {"Host": f"{host}:{port}", **login}, "CONNECT"
            )
            if tunnel.status != 200:
                raise FetchError(f"the proxy answered {tunnel.status} {tunnel.reason}; check https_proxy")
        elif proxy is not None:
            target, headers = address, {**headers, **login}
        if tls:
            sock.settimeout(deadline.left())
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        yield sock, headers, target
    finally:
        sock.close()


def _connected(host, port, deadline, public):
    """A socket to the first address of a host that answers; PermissionError where one of them must be
    ``public`` and is not."""
    addresses = _resolved(host, port, deadline)
    if public:
        for *_, address in addresses:
            _check_public(address[0])
    problem = OSError(f"{host} has no address")
    for i, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        try:
            # one that is silent leaves time for the others
            sock.settimeout(deadline.left() / (len(addresses) - i))
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            problem = error
    raise problem


def _answer(stream, target, headers, method="GET"):
    """The head of the answer, as an HTTPResponse."""
    lines = [f"{method} {target} HTTP/1.1", *(f"{key}: {value}" for key, value in headers.items()), "", ""]
    stream.sendall("\r\n".join(lines).encode("ascii"))
    response = http.client.HTTPResponse(stream, method=method)
    response.begin()
    return response


def _body(response, max_bytes):
    if not 200 <= response.status < 300:
        raise FetchError(
            f"the server answered {response.status} {response.reason}; check the address in a browser, or "
            "download the file "
            "and pass its path"
        )
    total, data = response.length, bytearray()
    while total is None or len(data) < total:
        if max(len(data), total or 0) > max_bytes:
            size = f"{total} bytes" if total else f"at least {len(data)} bytes"
            raise FetchError(
                f"{size}, the limit for one picture is {max_bytes}; raise max_bytes=, or download the file "
                "and pass "
                "its path"
            )
        chunk = response.read1(CHUNK)
        if not chunk:
            break
        data += chunk
    if total is not None and len(data) < total:
        raise ConnectionError(f"it was closed after {len(data)} of {total} bytes")
    return bytes(data)
