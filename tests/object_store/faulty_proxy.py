"""An HTTP server that hands requests on to another one, keeps a list of them, and spoils some."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Request:
    """What came in; ``sent`` is the number of bytes of its body."""

    method: str
    path: str
    sent: int


@dataclass(frozen=True)
class Answer:
    """An error of the store, answered instead of handing the request on."""

    status: int
    code: str = ""


@dataclass(frozen=True)
class Slow:
    """The answer comes so much later."""

    seconds: float


RESET = "the connection is reset, the request lost"
RESET_AFTER = "the request is done, the connection reset before the answer"
CUT_REQUEST = "half of the request is taken, then the connection reset"
CUT_ANSWER = "half of the answer comes, then the connection is reset"
UNAVAILABLE = Answer(503, "SlowDown")
DENIED = Answer(403, "AccessDenied")

Fault = Answer | Slow | str | None


class FaultyProxy:
    """Listens on loopback from the start; hands requests on to ``upstream`` once that is set.

    Attributes:
        upstream: Port of the server behind.
        fault: Called with each request's number and the request; what is to go wrong with it.
        requests: What came in since the last ``recorded``.
    """

    def __init__(self) -> None:
        self.upstream = 0
        self.fault: Callable[[int, Request], Fault] = lambda number, request: None
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @contextmanager
    def recorded(self) -> Iterator[list[Request]]:
        """Within it, the requests are in the list."""
        with self.lock:
            self.requests = requests = []
        yield requests

    @contextmanager
    def failing(self, fault: Callable[[int, Request], Fault]) -> Iterator[list[Request]]:
        """Within it, requests are spoiled; they are counted from 0."""
        self.fault = fault
        try:
            with self.recorded() as requests:
                yield requests
        finally:
            self.fault = lambda number, request: None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def handle_request(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        number, fault = self._fault(length)
        if fault == CUT_REQUEST and (length or "Transfer-Encoding" in self.headers):
            # Of a request in chunks, of which the length is not known: the first bytes.
            self.rfile.read(max(20, length // 2))
            self._hang_up()
            return
        body = self._body(length)
        self._note(number, body)
        if fault in (RESET, CUT_REQUEST):
            self._hang_up()
        elif isinstance(fault, Answer):
            self._answer(fault)
        else:
            if isinstance(fault, Slow):
                time.sleep(fault.seconds)
            self._hand_on(body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request  # noqa: N815

    def _fault(self, length: int) -> tuple[int, Fault]:
        proxy = self.proxy
        with proxy.lock:
            number = len(proxy.requests)
            request = Request(self.command, self.path, length)
            proxy.requests.append(request)
            return number, proxy.fault(number, request)

    def _note(self, number: int, body: bytes) -> None:
        with self.proxy.lock, contextlib.suppress(IndexError):
            self.proxy.requests[number] = Request(self.command, self.path, len(body))

    def _body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(length)
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(chunks)

    def _hand_on(self, body: bytes, fault: Fault) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.upstream)
        dropped = ("expect", "transfer-encoding", "content-length")
        headers = {key: value for key, value in self.headers.items() if key.lower() not in dropped}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        if fault == RESET_AFTER:
            self._hang_up()
            return
        self.send_response_only(response.status, response.reason)
        for key, value in response.getheaders():
            if key.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(key, value)
        size = response.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        if response.status != 204:
            self.send_header("Content-Length", size)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == CUT_ANSWER:
            self.wfile.write(content[: len(content) // 2])
            self._hang_up()
            return
        self.wfile.write(content)

    def _answer(self, answer: Answer) -> None:
        body = f"<Error><Code>{answer.code}</Code><Message>as told</Message></Error>".encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        # Reset instead of an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Pytest's output is for the tests."""
