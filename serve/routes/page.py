"""GET / and /static: the drawing page and its files; GET /openapi.json: the OpenAPI document."""

import mimetypes
from pathlib import Path

from flask import Blueprint, Response, request
from werkzeug.exceptions import NotFound

from serve.server.api_key import public

FOLDER = Path(__file__).parent
HEADERS = {
    # This policy forbids content from other hosts, inline scripts and styles, and embedding in a frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # the browser asks again each time, and gets 304 if the file has not changed
}


def blueprint() -> Blueprint:
    """Return the routes of the page and of openapi.json. All files are read once, when this function is called."""
    routes = Blueprint("page", __name__)
    files = {file.name: file.read_bytes() for file in (FOLDER / "static").iterdir()}
    description = (FOLDER.parent / "openapi.json").read_bytes()

    @routes.get("/")
    @routes.get("/static/<name>")
    @public
    def page(name: str = "index.html") -> Response:
        if name not in files:
            raise NotFound
        return _answer(name, files[name])

    @routes.get("/openapi.json")
    @public
    def openapi() -> Response:
        return _answer("openapi.json", description)

    return routes


def _answer(name: str, content: bytes) -> Response:
    """Return the file with an ETag; 304 if If-None-Match matches the ETag; 412 if If-Match does not match it."""
    response = Response(content, mimetype=mimetypes.guess_type(name)[0])
    response.headers.extend(HEADERS)
    response.add_etag()
    response.make_conditional(request)
    return response
