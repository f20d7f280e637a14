"""Error responses: RFC 9457 problem details, and under /v2 the Open Inference Protocol's error object."""

import logging

import msgspec
from flask import Flask, Response, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import BadRequest, HTTPException, InternalServerError

from serve.server.access_log import REQUEST_ID

LONGEST = 1_000  # characters of an error's detail; a longer detail is cut
logger = logging.getLogger("serve")


def encode(status: int, title: str, detail: str) -> bytes:
    """Return RFC 9457 problem details as JSON."""
    return msgspec.json.encode({"type": "about:blank", "title": title, "status": status, "detail": detail})


def install(app: Flask) -> None:
    """Register error handlers for `app`: for HTTP errors, malformed bodies and unexpected exceptions."""
    app.register_error_handler(HTTPException, _answer)
    app.register_error_handler(ParseException, lambda it: _answer(BadRequest(f"expected a valid body, found: {it}")))
    app.register_error_handler(Exception, _unexpected)


def _answer(error: HTTPException) -> Response:
    """Return the response for `error`, with the headers of `error`."""
    status = error.code or 500
    detail = error.description or error.name
    if error is request.routing_exception:
        detail = f"expected a path and a method that /openapi.json lists, found {request.method} {request.path}"
    if len(detail) > LONGEST:  # the detail may quote a long request
        detail = detail[:LONGEST] + " …"
    if request.path == "/v2" or request.path.startswith("/v2/"):
        body, content_type = msgspec.json.encode({"error": detail}), "application/json"
    else:
        body, content_type = encode(status, error.name, detail), "application/problem+json"
    response = Response(body, status, content_type=content_type)
    for name, value in error.get_headers():
        if name != "Content-Type":
            response.headers.add(name, value)
    return response


def _unexpected(error: Exception) -> Response:
    """Log the exception with its traceback and return 500. The response does not reveal the exception."""
    logger.exception("unexpected error", extra={"fields": {"request_id": request.environ[REQUEST_ID]}})
    return _answer(InternalServerError("the service failed; its log has the request id and the reason"))
