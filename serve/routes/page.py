"""GET / and /static: the drawing page and its files; GET /openapi.json: the OpenAPI document."""

from pathlib import Path

from flask import Blueprint, Response, send_file, send_from_directory

from serve.server.api_key import public

STATIC = Path(__file__).parent / "static"
DOCUMENT = Path(__file__).parent.parent / "openapi.json"
HEADERS = {
    # Nothing from another host, no inline script or style, no embedding in a frame.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # the browser revalidates each time: 304 if the file has not changed
}


def blueprint() -> Blueprint:
    """Return the routes."""
    routes = Blueprint("page", __name__)

    @routes.get("/")
    @public
    def page() -> Response:
        return send_from_directory(STATIC, "index.html")

    @routes.get("/static/<name>")
    @public
    def static(name: str) -> Response:
        return send_from_directory(STATIC, name)

    @routes.get("/openapi.json")
    @public
    def openapi() -> Response:
        return send_file(DOCUMENT)

    @routes.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response

    return routes
