"""The application: one predictor, a blueprint a concern."""

import io
from typing import IO, Any

from flask import Flask, Request, Response, request
from werkzeug.exceptions import NotFound

from serve import access, health, inference, logs, observe, page, predict, problem
from serve.config import Config
from serve.predictor import Predictor
from serve.release import Release


class InMemoryRequest(Request):
    """A request whose files stay in memory, where MAX_CONTENT_LENGTH bounds them: a full disk fails no request."""

    def _get_file_stream(self, *_: Any, **__: Any) -> IO[bytes]:
        return io.BytesIO()


def build(config: Config, release: Release) -> Flask:
    """Return the application that serves `release`. Raises ModelError if its graph is not as model.contract says."""
    predictor = Predictor(release.graph, config.threads, release.threshold)
    app = Flask("serve", static_folder=None)
    app.request_class = InMemoryRequest
    app.config.update(MAX_CONTENT_LENGTH=config.max_body_bytes, MAX_FORM_PARTS=config.max_batch)
    app.url_map.merge_slashes = False  # a path of another form is not found, rather than sent elsewhere
    app.before_request(_refuse_slashes)
    logs.install(config.log_level)
    observe.announce(config, release)
    app.wsgi_app = observe.Observer(app.wsgi_app)  # type: ignore[method-assign]  # as Flask has it be done
    problem.install(app)
    if config.api_key:
        access.require_key(app, config.api_key)
    if config.cors_origins:
        _allow_origins(app, config.cors_origins.split())
    app.register_blueprint(predict.blueprint(config, release, predictor))
    app.register_blueprint(inference.blueprint(config, release, predictor))
    app.register_blueprint(health.blueprint(predictor))
    app.register_blueprint(page.blueprint())
    return app


def _refuse_slashes() -> None:
    """Raise NotFound for a path that begins with several slashes, which werkzeug takes for one."""
    if request.environ["PATH_INFO"].startswith("//"):
        raise NotFound


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
