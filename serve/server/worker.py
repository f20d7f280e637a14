"""gunicorn's gevent worker, hardened against hostile clients: bodies, timeouts, pipelining and malformed requests.

The worker enforces REQUEST_TIMEOUT and changes three behaviours of gunicorn 27.0. After the response, gunicorn reads
the rest of a request's body for as long as the client sends. Before gunicorn parses data that has already arrived, it
does not yield to the event loop. gunicorn answers a malformed request in HTML.
"""

import errno
import logging
import secrets
import socket
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore
from gunicorn import util
from gunicorn.workers.ggevent import GeventWorker

from serve.server import logs
from serve.server.event_loop import yield_to_event_loop

LINGER = 5  # seconds that a connection stays open after the response if the client is still sending


class Connection:
    """A client's socket. Each read yields to the event loop. close() lets the client read the response first."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.timeout: gevent.Timeout | None = None  # the timeout of the current request
        self.lingers = False  # whether the client may still be sending when the connection is closed
        # The head of a response, which is sent together with the body: this saves 4 % of CPU time. b"": the next data
        # is the head of a response. None: data is sent immediately.
        self.held: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def recv(self, size: int) -> bytes:
        """Receive at most `size` bytes, and always yield. gevent's recv does not yield if data is already available."""
        loop = gevent.get_hub().loop
        iteration = loop.iteration
        data = self._socket.recv(size)
        if loop.iteration == iteration:
            yield_to_event_loop()
        return data

    def sendall(self, data: bytes) -> None:
        """Send or hold `data`. Raises ConnectionResetError if the client does not read `data` in time."""
        if self.held == b"":
            self.held = data
            return
        data, self.held = (self.held or b"") + data, None
        try:
            # If the timeout has expired, `data` is the response 408. A new timeout limits the sending of this response.
            if self.timeout and not self.timeout.pending:
                self.timeout = gevent.Timeout.start_new(self.timeout.seconds, self.timeout.exception)
            self._socket.sendall(data)
        except Exception as error:
            if self.timeout is None or error is not self.timeout.exception:
                raise
            logs.write(logging.INFO, "the client did not read its response in time: connection closed")
            raise ConnectionResetError(errno.ECONNRESET, "the client did not read its response in time") from None

    def close(self) -> None:
        """Close the connection. If the client may still be sending, first read its data, for at most LINGER seconds.

        Otherwise TCP would reset the connection and the client could lose the response (RFC 9112, section 9.6).
        """
        if self.lingers:
            with suppress(OSError), gevent.Timeout(LINGER, False):
                self._socket.shutdown(socket.SHUT_WR)
                while self.recv(65_536):
                    pass
        self._socket.close()


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """gevent worker that enforces REQUEST_TIMEOUT and fair scheduling of pipelined requests."""

    # A pipelined request arrives before the previous response is sent. In each iteration of the event loop, the worker
    # serves at most one pipelined request, of any connection. Thus no new client waits for all pipelined requests.
    _pipelined = BoundedSemaphore()

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        """Serve a connection."""
        super().handle(listener, Connection(client), addr)

    def handle_request(self, listener_name: Any, req: Any, sock: Connection, addr: Any) -> None:
        """Serve a request within REQUEST_TIMEOUT seconds, including the time to receive its body."""
        from werkzeug.exceptions import RequestTimeout  # the master must not import werkzeug: see serve.server.master

        should_close = req.should_close
        req.should_close = lambda: should_close() or _is_unread(req.body)
        if req._expected_100_continue:
            size = int(dict(req.headers).get("CONTENT-LENGTH", 0))
            # If the body is too large, "100 Continue" is not sent: the client gets 413 before it sends the body.
            req._expected_100_continue = size <= self.app.config.max_body_bytes
        seconds = self.app.config.request_timeout
        timeout = RequestTimeout(f"expected the whole request within {seconds} seconds, with time left to answer it")
        sock.timeout = gevent.Timeout.start_new(seconds, timeout)
        sock.held = b""
        try:
            super().handle_request(listener_name, req, sock, addr)
        finally:
            if sock.held:  # the response has no body, so its head is not sent yet
                with suppress(OSError):
                    sock.sendall(b"")
            sock.held = None
            sock.timeout.close()
            sock.timeout = None
            sock.lingers = _is_unread(req.body)
        if req.unreader.buf.tell():
            with self._pipelined:
                yield_to_event_loop()


def _is_unread(body: Any) -> bool:
    """Return whether part of a request's body (gunicorn.http.body.Body) was not read or was malformed."""
    reader = body.reader
    return bool(body.failed or getattr(reader, "length", 0) or getattr(reader, "parser", None))


def _write_problem(sock: Connection, status: int, reason: str, detail: str) -> None:
    """Send application/problem+json (RFC 9457) in answer to a request that gunicorn cannot parse."""
    from serve.server import problem  # the master must not import Flask, as problem does: see serve.server.master

    request_id = secrets.token_hex(16)
    title = HTTPStatus(status).phrase
    detail = (detail or title)[: logs.MAX_MESSAGE]
    body = problem.encode(status, title, detail)
    logs.write(logging.INFO, "request refused by gunicorn", request_id=request_id, status=status, detail=detail)
    head = (
        f"HTTP/1.1 {status} {title}\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
        f"Content-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\nX-Request-ID: {request_id}\r\n\r\n"
    )
    sock.lingers = True
    util.write_nonblock(sock, head.encode() + body)


util.write_error = _write_problem  # gunicorn calls this function for each error response that gunicorn itself sends
