"""Authentication: if API_KEY is set, every route requires this key, except the routes with the decorator `@public`."""

import hmac
from collections.abc import Callable
from typing import Any, TypeVar

from flask import Flask, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

View = TypeVar("View", bound=Callable[..., Any])


def public(view: View) -> View:
    """Exempt a view from authentication. This is a decorator."""
    view.public = True  # type: ignore[attr-defined]
    return view


def require_key(app: Flask, key: str) -> None:
    """Require `Authorization: Bearer KEY` for every view of `app` without `@public`. Otherwise the response is 401."""

    @app.before_request
    def check_key() -> None:
        view = app.view_functions.get(request.endpoint or "")
        if view is None or hasattr(view, "public") or request.method == "OPTIONS":  # no view: Flask returns 404 or 405
            return
        # Flask's request.authorization is not used, because it parses a key that contains "=" as parameters.
        scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not sent.strip():
            found = "another form" if scheme else "none"  # another form: the scheme is not Bearer, or no key follows
            raise Unauthorized(f"expected Authorization: Bearer KEY, found {found}", None, WWWAuthenticate("bearer"))
        if not hmac.compare_digest(sent.strip().encode(), key.encode()):
            raise Unauthorized("expected the API key, found another key", None, WWWAuthenticate("bearer"))
