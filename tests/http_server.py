"""A local web server that misbehaves on request; it stands for the network in every test that needs one.

    def test_it(http_server):
        url = http_server.add("/cat.jpg", data, faults=[Reset(0.5), Status(503)])   # then, from the third request on,
        sound ...
        assert http_server.bytes_served("/cat.jpg") == len(data) * 1.5

Import the fixture by name: ``from tests.http_server import http_server``. Outside pytest, ``with FaultyServer() as
server`` does.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass(frozen=True)
class Status:
    """Answer with this status and an empty body, e.g. 404, 500, 503."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reset:
    """Send ``share`` of the answer's body, then reset the connection (RST)."""

    share: float = 0.5


@dataclass(frozen=True)
class Stall:
    """Send ``share`` of the answer's body, then nothing for ``seconds`` (or until the server is closed)."""

    share: float = 0.5
    seconds: float = 60.0


@dataclass(frozen=True)
class Truncate:
    """State the whole Content-Length, send ``share`` of the body, and close in good order."""

    share: float = 0.5


@dataclass(frozen=True)
class Redirect:
    """Answer 302 to ``location``."""

    location: str


@dataclass(frozen=True)
class Slow:
    """Send the body at this many bytes a second."""

    rate: float


Fault = Status | Reset | Stall | Truncate | Redirect | Slow


@dataclass
class Resource:
    """What stands at a path.

    Attributes:
        faults: one a request, in order; afterwards requests are answered soundly.
        always: a fault for every request after those.
        ranges: "serve"; "ignore" (always 200 and the whole body); "refuse" (416); "careless" (206 whatever If-Range
            says).
        etag, last_modified: validators to state, None: leave out.
        length: state Content-Length (else the end of the connection is the end of the body).
    """

    body: bytes
    faults: list[Fault] = field(default_factory=list)
    always: Fault | None = None
    ranges: str = "serve"
    etag: str | None = '"1"'
    last_modified: str | None = None
    length: bool = True


@dataclass
class Request:
    """One request as the server saw it; ``sent`` counts the body bytes of its answer."""

    path: str
    headers: dict[str, str]
    connection: int
    status: int = 0
    sent: int = 0


class FaultyServer:
    """Serves resources from memory on 127.0.0.1, a thread for each connection."""

    def __init__(self) -> None:
        self.resources: dict[str, Resource] = {}
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self.lock = threading.Lock()

    def __enter__(self) -> FaultyServer:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.socket.close()  # server_close would wait for handlers of kept-alive connections

    def url(self, path: str) -> str:
        """The address of ``path``."""
        return f"http://127.0.0.1:{self._server.server_address[1]}{path}"

    def add(self, path: str, body: bytes, *, faults: Sequence[Fault] = (), **options: object) -> str:
        """Put ``body`` at ``path`` (in place of what stood there) and return its address; options: see Resource."""
        self.resources[path] = Resource(body, list(faults), **options)
        return self.url(path)

    def requests_for(self, path: str) -> list[Request]:
        """Every request for ``path`` so far, in order of arrival."""
        return [request for request in self.requests if request.path == path]

    def bytes_served(self, path: str) -> int:
        """Body bytes sent for ``path`` so far."""
        return sum(request.sent for request in self.requests_for(path))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    owner: FaultyServer

    def handle_error(self, *_: object) -> None:
        """Clients that are killed or reset are part of the plan; no traceback for them."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 0
    disable_nagle_algorithm = True  # head and body are two writes; without this each answer waits 40 ms

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        owner: FaultyServer = self.server.owner
        request = Request(self.path, dict(self.headers.items()), self.client_address[1])
        with owner.lock:
            owner.requests.append(request)
            resource = owner.resources.get(self.path)
            fault = None if resource is None else resource.faults.pop(0) if resource.faults else resource.always
        if resource is None:
            fault = Status(404)
        if isinstance(fault, Status):
            return self._empty(request, fault.code, fault.headers)
        if isinstance(fault, Redirect):
            return self._empty(request, 302, {"Location": fault.location})
        try:
            self._answer(request, resource, fault)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _empty(self, request: Request, code: int, headers: dict[str, str]) -> None:
        request.status = code
        self.send_response(code)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _answer(self, request: Request, resource: Resource, fault: Fault | None) -> None:
        start, total = self._start(resource), len(resource.body)
        if start is not None and (resource.ranges == "refuse" or start >= total):
            return self._empty(request, 416, {"Content-Range": f"bytes */{total}"})
        request.status = 200 if start is None else 206
        body = resource.body[start or 0 :]
        self.send_response(request.status)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if resource.length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
        for name, value in (("ETag", resource.etag), ("Last-Modified", resource.last_modified)):
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        share = fault.share if isinstance(fault, (Reset, Stall, Truncate)) else 1.0
        self._send(request, body[: int(len(body) * share)], fault.rate if isinstance(fault, Slow) else None)
        if isinstance(fault, Reset):
            time.sleep(0.3)  # a reset throws away what its receiver has not read yet, and a busy machine reads late
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif isinstance(fault, Stall):
            self.server.owner.closing.wait(fault.seconds)
        if fault is not None and not isinstance(fault, Slow):
            self.close_connection = True

    def _start(self, resource: Resource) -> int | None:
        """First byte of the asked range; None: send everything."""
        asked = self.headers.get("Range", "")
        if not asked.startswith("bytes=") or resource.ranges == "ignore":
            return None
        validator = self.headers.get("If-Range")
        if (
            validator is not None
            and resource.ranges != "careless"
            and validator not in (resource.etag, resource.last_modified)
        ):
            return None
        return int(asked.removeprefix("bytes=").split("-")[0])

    def _send(self, request: Request, body: bytes, rate: float | None) -> None:
        step = len(body) if rate is None else max(1, int(rate / 50))
        for at in range(0, len(body), step or 1):
            block = body[at : at + step]
            self.wfile.write(block)
            request.sent += len(block)
            if rate is not None and self.server.owner.closing.wait(len(block) / rate):
                return

    def finish(self) -> None:
        with contextlib.suppress(OSError):  # the connection was reset on purpose
            super().finish()


@pytest.fixture
def http_server() -> Iterator[FaultyServer]:
    """A FaultyServer for one test."""
    with FaultyServer() as server:
        yield server
