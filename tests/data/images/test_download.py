"""Pictures over http, from a server on this machine."""

import math
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import pytest

from mindblip2.data.images import download as fetching
from mindblip2.data.images.color_conversion import ImageError
from mindblip2.data.images.load import load_image


class Handler(BaseHTTPRequestHandler):
    """Each path is one behaviour of a server."""

    protocol_version = "HTTP/1.1"
    picture = b""
    redirects = 0
    stop = threading.Event()

    def do_GET(self):
        name = unquote(self.path).strip("/").split(".")[0].replace(" ", "_")
        getattr(self, f"get_{name}", self.get_none)()

    def answer(self, body, length=None, code=200, **headers):
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def get_ok(self):
        self.answer(self.picture)

    get_猫_picture = get_ok

    def get_unknown_length(self):
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(self.picture)

    def get_chunked(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in (self.picture[:100], self.picture[100:]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def get_moved(self):
        self.send_response(302)
        self.send_header("Location", "/ok.png")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def get_silent(self):
        self.stop.wait(5)

    def get_dripping(self):
        self.send_response(200)
        self.end_headers()
        while not self.stop.wait(0.05):
            self.wfile.write(b"x")

    def get_short(self):
        self.answer(self.picture[:100], length=len(self.picture))

    def get_page(self):
        self.answer(b"<!doctype html><title>Log in</title>")

    def get_empty(self):
        self.answer(b"")

    def get_continue(self):
        """A head that never ends: 100 Continue, again and again."""
        while not self.stop.wait(0.05):
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def get_head(self):
        """A head that never ends: one byte after the other."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not self.stop.wait(0.05):
            self.wfile.write(b"x")

    def get_loop(self):
        Handler.redirects += 1
        self.answer(b"", code=302, **{"Location": "/loop.png"})

    def get_slow_loop(self):
        """Each answer comes in time, all together do not."""
        self.stop.wait(0.12)
        self.answer(b"", code=302, **{"Location": "/slow_loop.png"})

    def get_flood(self):
        """A redirect with a body that never ends."""
        self.send_response(302)
        self.send_header("Location", "/ok.png")
        self.end_headers()
        while not self.stop.is_set():
            self.wfile.write(b"x" * 65536)

    def get_to_ftp(self):
        self.answer(b"", code=302, **{"Location": "ftp://127.0.0.1/a.png"})

    def get_to_file(self):
        self.answer(b"", code=302, **{"Location": "file:///etc/hostname"})

    def get_to_metadata(self):
        self.answer(b"", code=302, **{"Location": "http://169.254.169.254/latest/meta-data"})

    def get_none(self):
        self.answer(b"nothing here", code=404)

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # the client has gone, as the time-out tests want
            pass


@pytest.fixture(scope="module")
def address(noise, encode):
    Handler.picture = encode(noise, "PNG")
    Handler.stop.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Handler.stop.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def own_server(monkeypatch):
    """This machine's server is asked directly, and may be."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("MINDBLIP2_ALLOW_PRIVATE", "1")


@pytest.mark.parametrize(
    "path",
    [
        "ok.png",
        "ok.png?size=1&key=a%20b",
        "unknown_length.png",
        "chunked.png",
        "moved.png",
        "猫 picture.png",
        "%E7%8C%AB%20picture.png",
    ],
)
def test_pictures_arrive(address, noise, path):
    for url in (f"{address}/{path}", f"{address}/{path}".replace("http", "HTTP")):
        np.testing.assert_array_equal(np.asarray(load_image(url)), np.asarray(noise))


@pytest.mark.parametrize("path", ["silent.png", "dripping.png", "continue.png", "head.png", "slow_loop.png"])
def test_b2_one_deadline_for_the_whole_call(address, path):
    """All but the silent server answer each single wait in time; only the limit on the whole call ends it."""
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=f"{path}.*: no complete answer within 0.3 s") as error:
        load_image(f"{address}/{path}", timeout=0.3)
    assert 0.25 < time.monotonic() - start < 2
    assert "timeout=" in str(error.value)


def test_not_found(address):
    with pytest.raises(OSError, match=r"nothing.png: the server answered 404 Not Found"):
        load_image(f"{address}/nothing.png")


@pytest.mark.parametrize("path", ["ok.png", "unknown_length.png"])
def test_too_large(address, path):
    size = len(Handler.picture)
    with pytest.raises(OSError, match=f"{path}: .*{size} bytes, the limit for one picture is {size - 1};"):
        load_image(f"{address}/{path}", max_bytes=size - 1)
    # negative control: one byte more
    assert load_image(f"{address}/{path}", max_bytes=size).size == (30, 20)


def test_broken_transfer(address):
    with pytest.raises(
        ConnectionError,
        match=f"short.png: the connection broke off: it was closed after 100 of {len(Handler.picture)}",
    ):
        load_image(f"{address}/short.png")


def test_a_page_instead_of_a_picture(address):
    with pytest.raises(ImageError, match="page.png cannot be read as a picture: it starts like an HTML page"):
        load_image(f"{address}/page.png")


def test_empty_answer(address):
    with pytest.raises(ImageError, match="empty.png is empty"):
        load_image(f"{address}/empty.png")


def test_no_server():
    with pytest.raises(OSError, match="127.0.0.1:9/a.png cannot be reached: .*refused"):
        load_image("http://127.0.0.1:9/a.png")


@pytest.mark.parametrize(
    "wrong", ["http://", "http:///a.png", "http://127.0.0.1:port/a.png", "http://[::1/a.png"]
)
def test_malformed_address(wrong):
    with pytest.raises(OSError, match="address"):
        load_image(wrong)


@pytest.mark.parametrize(
    "argument, value",
    [
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", None),
        ("timeout", math.inf),
        ("timeout", math.nan),
        ("timeout", "5"),
        ("timeout", 1e300),
        ("timeout", True),
        ("max_bytes", None),
        ("max_bytes", 0),
        ("max_bytes", math.inf),
        ("max_bytes", "9"),
        ("alpha", "black"),
    ],
)
def test_b12_arguments_out_of_range_are_one_line(address, argument, value):
    for source in (f"{address}/ok.png", b"\x89PNG"):  # checked before anything is read
        with pytest.raises(ValueError, match=f"^{argument} = .*expected") as error:
            load_image(source, **{argument: value})
        assert "\n" not in str(error.value)


def test_b12_arguments_in_range_are_taken(address):
    assert load_image(f"{address}/ok.png", timeout=np.float32(5), max_bytes=1e6).size == (30, 20)


# ------------------------------------------------------------------------------------------------ redirects
def test_b2_a_redirect_loop_ends(address):
    Handler.redirects = 0
    with pytest.raises(OSError, match="loop.png .*more than 10 redirects"):
        load_image(f"{address}/loop.png")
    assert Handler.redirects == 11


def test_b2_the_body_of_a_redirect_is_not_read(address, noise):
    np.testing.assert_array_equal(
        np.asarray(load_image(f"{address}/flood.png", timeout=5)), np.asarray(noise)
    )


@pytest.mark.parametrize("path, scheme", [("to_ftp.png", "ftp:"), ("to_file.png", "file:")])
def test_b2_a_redirect_stays_on_http(address, path, scheme):
    with pytest.raises(OSError, match=f"{path}: {scheme} is not followed"):
        load_image(f"{address}/{path}")


def test_a_name_and_password_are_refused_not_ignored():
    with pytest.raises(OSError, match="user's name and password"):
        load_image("http://me:secret@127.0.0.1/a.png")


# ------------------------------------------------------------------------------------------------ private add
PRIVATE = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "224.0.0.1",
    "239.1.2.3",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "::1",
    "::",
    "fe80::1",
    "fe80::1%eth0",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
]
PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.fixture
def answers(monkeypatch):
    """answers(*addresses): every name resolves to these, and whoever is connected to is written down, not
    called."""
    called = []

    def set_up(*addresses):
        def resolve(host, port, *_, **__):
            return [
                (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
                for one in addresses
            ]

        class Closed:
            def __init__(self, *_):
                pass

            def settimeout(self, _):
                pass

            def connect(self, address):
                called.append(address[0])
                raise ConnectionRefusedError("refused")

            def close(self):
                pass

        monkeypatch.setattr(fetching.socket, "getaddrinfo", resolve)
        monkeypatch.setattr(fetching.socket, "socket", Closed)
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.delenv("MINDBLIP2_ALLOW_PRIVATE")
        return called

    return set_up


@pytest.mark.parametrize("private", PRIVATE)
def test_b2_private_addresses_are_refused_by_what_the_name_resolves_to(answers, private):
    called = answers(private)
    with pytest.raises(
        PermissionError,
        match=rf"http://cats.example/a.png is at {re.escape(private)}, .*allow_private=True .*MINDBLIP2",
    ):
        load_image("http://cats.example/a.png")
    assert not called


@pytest.mark.parametrize("public", PUBLIC)
def test_b2_public_addresses_are_called(answers, public):
    """Negative control."""
    called = answers(public)
    with pytest.raises(OSError, match="cannot be reached: refused"):
        load_image("http://cats.example/a.png")
    assert called == [public]


def test_b2_a_name_with_a_private_address_among_public_ones_is_refused(answers):
    called = answers("8.8.8.8", "127.0.0.1")
    with pytest.raises(PermissionError, match="is at 127.0.0.1"):
        load_image("http://cats.example/a.png")
    assert not called


def test_b2_the_checked_address_is_the_one_that_is_called(answers, monkeypatch):
    """DNS rebinding: the second look at the name would find this machine."""
    called, asked = answers("8.8.8.8"), []
    first = fetching.socket.getaddrinfo

    def changing(host, port, *rest, **options):
        asked.append(host)
        return (
            first(host, port)
            if len(asked) == 1
            else [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        )

    monkeypatch.setattr(fetching.socket, "getaddrinfo", changing)
    with pytest.raises(OSError, match="cannot be reached"):
        load_image("http://cats.example/a.png")
    assert called == ["8.8.8.8"] and len(asked) == 1


def test_b2_this_machine_is_refused_unless_allowed(address, noise, monkeypatch):
    monkeypatch.delenv("MINDBLIP2_ALLOW_PRIVATE")
    for url in (f"{address}/ok.png", f"{address}/ok.png".replace("127.0.0.1", "2130706433")):
        monkeypatch.setenv("no_proxy", "*")
        with pytest.raises(PermissionError, match="is at 127.0.0.1"):
            load_image(url)
    for allowed in ({"allow_private": True}, {}):
        np.testing.assert_array_equal(
            np.asarray(load_image(f"{address}/ok.png", **allowed)), np.asarray(noise)
        )
        monkeypatch.setenv("MINDBLIP2_ALLOW_PRIVATE", "1")
    # an argument goes before the environment
    with pytest.raises(PermissionError, match="is at 127.0.0.1"):
        load_image(f"{address}/ok.png", allow_private=False)
    monkeypatch.setenv("MINDBLIP2_ALLOW_PRIVATE", "yes")
    with pytest.raises(ValueError, match="MINDBLIP2_ALLOW_PRIVATE = 'yes': expected 1 or 0"):
        load_image(f"{address}/ok.png")


def test_b2_a_redirect_into_the_private_network_is_refused(address, monkeypatch):
    """The first server is taken for a public one; where it points to is looked at again."""
    known = fetching._check_public
    monkeypatch.setattr(fetching, "_check_public", lambda host: host == "127.0.0.1" or known(host))
    monkeypatch.delenv("MINDBLIP2_ALLOW_PRIVATE")
    with pytest.raises(
        PermissionError,
        match="to_metadata.png .redirected to http://169.254.169.254/.* is at 169.254.169.254",
    ):
        load_image(f"{address}/to_metadata.png")
    assert load_image(f"{address}/moved.png").size == (30, 20)  # negative control


def test_b2_a_slow_name_server_counts_too(monkeypatch):
    monkeypatch.setattr(fetching.socket, "getaddrinfo", lambda *_, **__: time.sleep(3))
    monkeypatch.setenv("no_proxy", "*")
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="no complete answer within 0.2 s"):
        load_image("http://cats.example/a.png", timeout=0.2)
    assert time.monotonic() - start < 2


# ------------------------------------------------------------------------------------------------ proxies
def test_a_proxy_of_the_environment_is_asked(address, noise, monkeypatch):
    """It gets the whole address; names are its business, addresses in numbers are not."""
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", address)
    monkeypatch.delenv("MINDBLIP2_ALLOW_PRIVATE")
    asked = []
    monkeypatch.setattr(Handler, "do_GET", lambda self: (asked.append(self.path), self.get_ok()))
    np.testing.assert_array_equal(np.asarray(load_image("http://cats.example/a b.png")), np.asarray(noise))
    assert asked == ["http://cats.example/a%20b.png"]
    for private in ("127.0.0.1", "localhost", "169.254.169.254", "2130706433", "[::1]"):
        with pytest.raises(PermissionError, match="which is|none of which"):
            load_image(f"http://{private}/a.png")
    assert len(asked) == 1
