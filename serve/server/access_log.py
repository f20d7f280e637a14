"""Access log: WSGI middleware that gives each request an id, logs it as one line of JSON, and counts it."""

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from serve.config import Networks
from serve.server import logs, metrics

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ID_FORM = re.compile(r"[A-Za-z0-9._:-]{1,128}")
LONGEST = 600  # characters of a path in the log, up to 6 bytes each: a pipe writes 4,096 bytes atomically
# Routes that machines ask all the time: logged as debug while they succeed.
PROBES = re.compile("/healthz|/readyz|/metrics|/v2/.*/(live|ready)")
REQUEST_ID, IMAGES_PREDICTED = "serve.request_id", "serve.images"  # keys of a request's WSGI environment


def answer(
    application: "WSGIApplication",
    proxies: Networks,
    environ: "WSGIEnvironment",
    start_response: "StartResponse",
) -> Iterable[bytes]:
    """Return the application's response with X-Request-ID and X-Content-Type-Options added; log and count it.

    X-Forwarded-For is believed if it comes from one of `proxies`.
    """
    start = time.perf_counter()
    sent = environ.get("HTTP_X_REQUEST_ID", "")
    request_id = environ[REQUEST_ID] = sent if ID_FORM.fullmatch(sent) else secrets.token_hex(16)

    def respond(line: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
        _record(environ, proxies, line[:3], time.perf_counter() - start)
        headers += [("X-Request-ID", request_id), ("X-Content-Type-Options", "nosniff")]
        return start_response(line, headers, *exc_info)

    metrics.IN_FLIGHT.inc()
    try:
        return application(environ, respond)
    finally:
        metrics.IN_FLIGHT.dec()


def _record(environ: "WSGIEnvironment", proxies: Networks, status: str, seconds: float) -> None:
    """Count a request and write its access-log line."""
    request = environ["werkzeug.request"]  # Flask's, available until its response has begun
    rule = request.url_rule
    method = environ["REQUEST_METHOD"]
    route = rule.rule if rule else "unmatched"
    metrics.count_request(route, method if rule else "any", status, seconds)
    level = logging.ERROR if status >= "500" else logging.INFO
    if status < "400" and PROBES.fullmatch(route):
        level = logging.DEBUG
    logs.write(
        level,
        "request",
        request_id=environ[REQUEST_ID],
        remote=_client(environ, proxies),
        method=method,
        path=request.path[:LONGEST],
        status=int(status),
        images=environ.get(IMAGES_PREDICTED, 0),
        milliseconds=round(seconds * 1000, 3),
    )


def _client(environ: "WSGIEnvironment", proxies: Networks) -> str:
    """Return the client's address: of the connection, or the last in X-Forwarded-For that is none of `proxies`."""
    address: str = environ.get("REMOTE_ADDR", "")
    forwarded = environ.get("HTTP_X_FORWARDED_FOR", "").split(",")
    while forwarded and proxies and proxies.include(address):
        address = forwarded.pop().strip()[:LONGEST] or address
    return address
