"""The application: one predictor, a blueprint a concern."""

import hmac

from flask import Flask, Response, request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

from serve import health, inference, logs, observe, page, predict, problem
from serve.config import Config
from serve.predictor import Predictor
from serve.release import Release

PREDICTING = ("predict.predict", "inference.infer")  # the endpoints that a key is asked for


def build(config: Config, release: Release) -> Flask:
    """Return the application that serves `release`. Raises ModelError where its graph is not the contract's."""
    predictor = Predictor(release.graph, config.threads)
    app = Flask("serve", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=config.max_body_bytes, MAX_FORM_PARTS=config.max_batch)
    app.url_map.merge_slashes = False  # a path of another form is not found, rather than sent elsewhere
    logs.install(config.log_level)
    observe.announce(config, release)
    app.wsgi_app = observe.Observer(app.wsgi_app)  # type: ignore[method-assign]  # as Flask has it be done
    problem.install(app)
    if config.api_key:
        _require_key(app, config.api_key)
    if config.cors_origins:
        _allow_origins(app, config.cors_origins.split())
    app.register_blueprint(predict.blueprint(config, release, predictor))
    app.register_blueprint(inference.blueprint(config, release, predictor))
    app.register_blueprint(health.blueprint(predictor))
    app.register_blueprint(page.blueprint())
    return app


def _require_key(app: Flask, key: str) -> None:
    @app.before_request
    def check_key() -> None:
        if request.endpoint not in PREDICTING or request.method == "OPTIONS":
            return
        sent = request.authorization
        if sent is None or sent.type != "bearer" or not sent.token:
            found = "none" if sent is None else "another kind"
            raise Unauthorized(
                f"expected Authorization: Bearer and a key, found {found}", None, WWWAuthenticate("bearer")
            )
        if not hmac.compare_digest(sent.token.encode(), key.encode()):
            raise Unauthorized("expected the service's key, found another", None, WWWAuthenticate("bearer"))


def _allow_origins(app: Flask, origins: list[str]) -> None:
    """Let pages of `origins` (`*`: of any) call the service from a browser (https://fetch.spec.whatwg.org)."""

    @app.after_request
    def allow(response: Response) -> Response:
        origin = request.headers.get("Origin")
        response.vary.add("Origin")
        if origin and ("*" in origins or origin in origins):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "X-Request-ID, Inference-Header-Content-Length"
            if request.method == "OPTIONS":
                response.headers["Access-Control-Allow-Methods"] = "GET, POST"
                response.headers["Access-Control-Allow-Headers"] = (
                    "Authorization, Content-Type, X-Request-ID, Inference-Header-Content-Length"
                )
        return response
