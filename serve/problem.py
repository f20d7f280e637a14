"""Errors as RFC 9457 problem details; under /v2 as the Open Inference Protocol's own error object."""

import logging

import msgspec
from flask import Flask, Response, request
from gunicorn.http.errors import NoMoreData, ParseException
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    InternalServerError,
    MethodNotAllowed,
    NotFound,
    RequestEntityTooLarge,
)

from serve.observe import REQUEST_ID

LONGEST = 1_000  # characters of an error's detail
logger = logging.getLogger("serve")


def install(app: Flask) -> None:
    """Make every error of `app`, whoever raises it, an answer of these forms."""
    app.register_error_handler(HTTPException, _answer)
    app.register_error_handler(ParseException, _malformed)
    app.register_error_handler(NoMoreData, _malformed)
    app.register_error_handler(Exception, _unexpected)


def _answer(error: HTTPException) -> Response:
    status = error.code or 500
    detail = _shorten(_detail(error))
    body: dict[str, str | int]
    if request.path == "/v2" or request.path.startswith("/v2/"):
        body, content_type = {"error": detail}, "application/json"
    else:
        body = {"type": "about:blank", "title": error.name, "status": status, "detail": detail}
        content_type = "application/problem+json"
    response = Response(msgspec.json.encode(body), status, content_type=content_type)
    for name, value in error.get_headers():
        if name != "Content-Type":
            response.headers.add(name, value)
    return response


def _detail(error: HTTPException) -> str:
    """Return the error's own words, or better ones where they are werkzeug's for any service."""
    if isinstance(error, NotFound) and error.description == NotFound.description:
        return f"expected a path that /openapi.json lists, found {request.path}"
    if isinstance(error, MethodNotAllowed):
        return f"expected {' or '.join(sorted(error.valid_methods or []))} for {request.path}, found {request.method}"
    if isinstance(error, RequestEntityTooLarge) and error.description == RequestEntityTooLarge.description:
        parts = f" and {request.max_form_parts} parts" if request.mimetype == "multipart/form-data" else ""
        return f"expected a body of at most {request.max_content_length} bytes{parts}, found a larger one"
    return error.description or error.name


def _shorten(text: str) -> str:
    """Return the text's beginning: what was sent is quoted, but not sent back whole."""
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _malformed(error: Exception) -> Response:
    """Answer what gunicorn finds wrong with a body as it is read: malformed chunks, or an early end."""
    return _answer(BadRequest(f"expected a well-formed body, found: {error}"))


def _unexpected(error: Exception) -> Response:
    """Log what should not have happened, with its traceback; tell the client nothing of it."""
    logger.exception("unexpected error", extra={"fields": {"request_id": request.environ[REQUEST_ID]}})
    return _answer(InternalServerError("the service failed; its log has the request id and the reason"))
