"""gunicorn's gevent worker, made to withstand hostile clients: bodies, time limits, pipelining and malformed requests.

What the base class does not do, read in gunicorn 27.0: it drains a body that the application did not read, for as long
as the client sends; it parses whatever has arrived without yielding to the event loop; it answers a request that it
cannot parse in HTML.
"""

import errno
import logging
import socket
import uuid
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import gevent
import msgspec
from gevent.lock import BoundedSemaphore
from gunicorn import util
from gunicorn.workers.ggevent import GeventWorker

from serve import logs, wsgi
from serve.event_loop import yield_to_event_loop

LINGER = 5  # seconds in which a client that is still sending can read the answer to what it has sent
LONGEST = 1_000  # characters of an error's detail


class Connection:
    """A client's socket: each read yields to the event loop, and closing it does not lose an answer that was sent."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.lingers = False  # whether the client may still be sending when the connection is closed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def recv(self, size: int) -> bytes:
        """Return at most `size` bytes. gevent alone does not yield where they have arrived already."""
        data = self._socket.recv(size)
        yield_to_event_loop()
        return data

    def sendall(self, data: bytes) -> None:
        """Send `data`. Raises ConnectionResetError where the client does not read it in time."""
        from werkzeug.exceptions import RequestTimeout  # not above: see serve/__init__.py

        try:
            self._socket.sendall(data)
        except RequestTimeout:
            logs.write(logging.INFO, "the client did not read its answer in time: connection closed")
            raise ConnectionResetError(errno.ECONNRESET, "the client did not read its answer in time") from None

    def close(self) -> None:
        """Close the connection; where the client may still be sending, once it has stopped or LINGER is over.

        Closed with unread bytes, TCP would reset the connection, and the client could lose the answer (RFC 9112, 9.6).
        """
        if self.lingers:
            with suppress(OSError), gevent.Timeout(LINGER, False):
                self._socket.shutdown(socket.SHUT_WR)
                while self.recv(65_536):
                    pass
        self._socket.close()


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """The gevent worker with limits that hold for every request."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # One pipelined request is answered in each iteration of the event loop, however many connections have some:
        # they have arrived already, so that without this all of them would be served before a new client's.
        self._pipelined = BoundedSemaphore()

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Serve a connection."""
        super().handle(listener, Connection(client), addr)

    def handle_request(self, listener_name: Any, req: Any, sock: Connection, addr: Any) -> None:
        """Answer a request within REQUEST_TIMEOUT, its body's arrival included."""
        from werkzeug.exceptions import RequestTimeout  # not above: see serve/__init__.py

        keeps_open = req.should_close
        req.should_close = lambda: keeps_open() or _is_unread(req.body)
        if req._expected_100_continue:
            size = int(dict(req.headers).get("CONTENT-LENGTH", 0))
            # Where it is too large, the application answers 413, before the body is sent.
            req._expected_100_continue = size <= wsgi.config.max_body_bytes
        seconds = wsgi.config.request_timeout
        late = RequestTimeout(f"expected the whole request within {seconds} seconds")
        try:
            with gevent.Timeout(seconds, late):
                super().handle_request(listener_name, req, sock, addr)
        finally:
            sock.lingers = _is_unread(req.body)
        if req.unreader.buf.tell():
            with self._pipelined:
                yield_to_event_loop()


def _is_unread(body: Any) -> bool:
    """Return whether a part of a request's body (gunicorn.http.body.Body) is unread, or was malformed."""
    reader = body.reader
    return bool(body.failed or getattr(reader, "length", 0) or getattr(reader, "parser", None))


def _write_problem(sock: Connection, status: int, reason: str, detail: str) -> None:
    """Answer a request that gunicorn cannot parse, as problem+json (RFC 9457)."""
    request_id = uuid.uuid4().hex
    title = HTTPStatus(status).phrase
    body = msgspec.json.encode(
        {"type": "about:blank", "title": title, "status": status, "detail": (detail or title)[:LONGEST]}
    )
    logs.write(logging.INFO, "malformed request", request_id=request_id, status=status)
    head = (
        f"HTTP/1.1 {status} {title}\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\nX-Request-ID: {request_id}\r\n\r\n"
    )
    sock.lingers = True
    util.write_nonblock(sock, head.encode() + body)


util.write_error = _write_problem  # the one function through which gunicorn answers by itself
