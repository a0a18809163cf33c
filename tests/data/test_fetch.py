"""Pictures over http, from a server on this machine."""
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import pytest

from mindblip2.data.image import load_image
from mindblip2.data.pixels import ImageError


class Handler(BaseHTTPRequestHandler):
    """Each path is one behaviour of a server."""
    protocol_version = "HTTP/1.1"
    picture = b""
    stop = threading.Event()

    def do_GET(self):
        name = unquote(self.path).strip("/").split(".")[0].replace(" ", "_")
        getattr(self, f"get_{name}", self.get_none)()

    def answer(self, body, length=None, code=200):
        self.send_response(code)
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

    def get_none(self):
        self.answer(b"nothing here", code=404)

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except ConnectionError:     # the client has gone, as the time-out tests want
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
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("path", ["ok.png", "ok.png?size=1&key=a%20b", "unknown_length.png", "chunked.png", "moved.png",
                                  "猫 picture.png", "%E7%8C%AB%20picture.png"])
def test_pictures_arrive(address, noise, path):
    for url in (f"{address}/{path}", f"{address}/{path}".replace("http", "HTTP")):
        np.testing.assert_array_equal(np.asarray(load_image(url)), np.asarray(noise))


@pytest.mark.parametrize("path", ["silent.png", "dripping.png"])
def test_slow_server_times_out(address, path):
    """A dripping server answers each single read in time; only the limit on the whole transfer ends it."""
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=f"{path}: no complete answer within 0.3 s") as error:
        load_image(f"{address}/{path}", timeout=0.3)
    assert 0.25 < time.monotonic() - start < 2
    assert "timeout=" in str(error.value)


def test_not_found(address):
    with pytest.raises(OSError, match=r"nothing.png: the server answered 404 Not Found"):
        load_image(f"{address}/nothing.png")


@pytest.mark.parametrize("path", ["ok.png", "unknown_length.png"])
def test_too_large(address, path):
    size = len(Handler.picture)
    with pytest.raises(OSError, match=f"{path} holds .*{size} bytes, the limit for one picture is {size - 1};"):
        load_image(f"{address}/{path}", max_bytes=size - 1)
    assert load_image(f"{address}/{path}", max_bytes=size).size == (30, 20)      # negative control: one byte more


def test_broken_transfer(address):
    with pytest.raises(ConnectionError, match=f"short.png: the connection closed after 100 of {len(Handler.picture)}"):
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


@pytest.mark.parametrize("wrong", ["http://", "http:///a.png", "http://127.0.0.1:port/a.png", "http://[::1/a.png"])
def test_malformed_address(wrong):
    with pytest.raises(OSError, match="address"):
        load_image(wrong)


@pytest.mark.parametrize("timeout", [0, -1, None])
def test_timeout_must_be_positive(address, timeout):
    with pytest.raises(ValueError, match="expected seconds above 0"):
        load_image(f"{address}/ok.png", timeout=timeout)
