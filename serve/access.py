"""The key: with API_KEY set, every route needs it but those that are marked public where they are defined."""

import hmac
from collections.abc import Callable
from typing import Any, TypeVar

from flask import Flask, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

View = TypeVar("View", bound=Callable[..., Any])


def public(view: View) -> View:
    """Mark a view as one that needs no key. It stands below `@routes.get(…)`."""
    view.public = True  # type: ignore[attr-defined]
    return view


def require_key(app: Flask, key: str) -> None:
    """Have every view of `app` that is not public answer 401 where `Authorization: Bearer` and `key` are not sent."""

    @app.before_request
    def check_key() -> None:
        view = app.view_functions.get(request.endpoint or "")
        if view is None or hasattr(view, "public") or request.method == "OPTIONS":  # none: 404 or 405
            return
        # Not request.authorization, which takes a key with "=" in it for parameters.
        scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not sent.strip():
            found = "another kind" if scheme else "none"
            raise Unauthorized(
                f"expected Authorization: Bearer and a key, found {found}", None, WWWAuthenticate("bearer")
            )
        if not hmac.compare_digest(sent.strip().encode(), key.encode()):
            raise Unauthorized("expected the service's key, found another", None, WWWAuthenticate("bearer"))
