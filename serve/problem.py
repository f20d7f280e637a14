"""Error responses: RFC 9457 problem details, and under /v2 the Open Inference Protocol's error object."""

import logging
from typing import Annotated, Literal

import msgspec
from flask import Flask, Response, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import BadRequest, HTTPException, InternalServerError, RequestEntityTooLarge

from serve.access_log import REQUEST_ID

LONGEST = 1_000  # characters of an error's detail
logger = logging.getLogger("serve")

Detail = Annotated[str, msgspec.Meta(description="What was expected and what was found.")]


class Problem(msgspec.Struct, forbid_unknown_fields=True):
    """RFC 9457 problem details."""

    type: Literal["about:blank"]
    title: str
    status: Annotated[int, msgspec.Meta(ge=400, le=599)]
    detail: Detail


class InferenceError(msgspec.Struct, forbid_unknown_fields=True):
    """The Open Inference Protocol's error."""

    error: Detail


def install(app: Flask) -> None:
    """Register error handlers for `app`: for HTTP errors, malformed bodies and unexpected exceptions."""
    app.register_error_handler(HTTPException, _answer)
    app.register_error_handler(ParseException, _malformed)
    app.register_error_handler(Exception, _unexpected)


def _answer(error: HTTPException) -> Response:
    """Return the response for `error`, with its headers."""
    status = error.code or 500
    detail = error.description or error.name
    if error is request.routing_exception:
        detail = f"expected a path and a method that /openapi.json lists, found {request.method} {request.path}"
    if detail == RequestEntityTooLarge.description:  # werkzeug's, and that of serve.bodies for bytes
        limits = f"at most {request.max_content_length} bytes, of a form at most {request.max_form_parts} parts"
        detail = f"expected a body of {limits}, found a larger one"
    if len(detail) > LONGEST:  # it may quote the request, which is not to be sent back whole
        detail = detail[:LONGEST] + " …"
    body: Problem | InferenceError
    if request.path == "/v2" or request.path.startswith("/v2/"):
        body, content_type = InferenceError(detail), "application/json"
    else:
        body, content_type = Problem("about:blank", error.name, status, detail), "application/problem+json"
    response = Response(msgspec.json.encode(body), status, content_type=content_type)
    for name, value in error.get_headers():
        if name != "Content-Type":
            response.headers.add(name, value)
    return response


def _malformed(error: ParseException) -> Response:
    """Return 400 for invalid chunked encoding."""
    return _answer(BadRequest(f"expected a well-formed body, found: {error}"))


def _unexpected(error: Exception) -> Response:
    """Return 500 and log the exception with its traceback; the response does not reveal it."""
    logger.exception("unexpected error", extra={"fields": {"request_id": request.environ[REQUEST_ID]}})
    return _answer(InternalServerError("the service failed; its log has the request id and the reason"))
