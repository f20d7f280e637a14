"""Access log: gives each request an id, writes one line of JSON per request, and counts the requests."""

import logging
import re
import secrets
import time

from flask import Flask, Response, request

from serve.config import Networks
from serve.server import logs, metrics

ID_FORM = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Maximum number of characters of a path in the log. In JSON, a character has at most 6 bytes, so a log line has at most
# 4,096 bytes. Linux writes a line of this size to a pipe in one piece, never mixed with the lines of other processes.
LONGEST = 600
# Routes that monitoring calls often. Successful requests to these routes are logged at level debug.
PROBES = re.compile("/healthz|/readyz|/metrics|/v2/.*/(live|ready)")
# Keys that this module and the routes add to a request's WSGI environment.
REQUEST_ID, IMAGES_PREDICTED, START = "serve.request_id", "serve.images", "serve.start"


def install(app: Flask, proxies: Networks) -> None:
    """Make `app` give each request an id, log the request and count it.

    Call this function before other hooks are registered. Requests that another hook refuses are then logged, too. The
    log has the client's address from X-Forwarded-For only if the connection comes from one of `proxies`.
    """

    @app.before_request
    def begin() -> None:
        sent = request.headers.get("X-Request-ID", "")
        request.environ[REQUEST_ID] = sent if ID_FORM.fullmatch(sent) else secrets.token_hex(16)
        request.environ[START] = time.perf_counter()
        metrics.IN_FLIGHT.inc()

    @app.after_request
    def record(response: Response) -> Response:
        environ, rule, method, status = request.environ, request.url_rule, request.method, response.status_code
        seconds = time.perf_counter() - environ[START]
        route = rule.rule if rule else "unmatched"
        metrics.count_request(route, method if rule else "any", status, seconds)
        level = logging.ERROR if status >= 500 else logging.INFO
        if status < 400 and PROBES.fullmatch(route):
            level = logging.DEBUG
        logs.write(
            level,
            "request",
            request_id=environ[REQUEST_ID],
            remote=_client(environ.get("REMOTE_ADDR", ""), environ.get("HTTP_X_FORWARDED_FOR", ""), proxies),
            method=method,
            path=request.path[:LONGEST],
            status=status,
            images=environ.get(IMAGES_PREDICTED, 0),
            milliseconds=round(seconds * 1000, 3),
        )
        response.headers["X-Request-ID"] = environ[REQUEST_ID]
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.teardown_request
    def end(_: BaseException | None) -> None:
        metrics.IN_FLIGHT.dec()


def _client(address: str, forwarded: str, proxies: Networks) -> str:
    """Return the client's address.

    Of the addresses in `forwarded`, followed by `address`, it is the last one that is not in `proxies`, or the first
    one if all are. `address` is the address of the connection. `forwarded` is the header X-Forwarded-For, to which each
    proxy appends the address of its own client.
    """
    addresses = forwarded.split(",")
    while addresses and proxies and proxies.include(address):
        address = addresses.pop().strip()[:LONGEST] or address
    return address
