"""Flask application factory: creates the predictor, and registers one blueprint per group of routes."""

import logging
import os

from flask import Flask, Response, request

from serve.config import Config
from serve.predictor import Predictor
from serve.release import Release, read
from serve.routes import health, open_inference, page, predict
from serve.routes.images import OTHER_FIELDS
from serve.server import access_log, api_key, logs, metrics, problem


def create_app(config: Config | None = None, release: Release | None = None) -> Flask:
    """Return the application that serves `release`.

    By default, every setting has its default value, and the release is read from `config.model_dir`. Raises ModelError
    if the release is invalid, or if its graph does not run or does not have the inputs and outputs of model.contract.
    """
    config = config or Config()
    release = release or read(config.model_dir)
    predictor = Predictor(release.graph, release.manifest.doubt.threshold)
    app = Flask("serve", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=config.max_body_bytes, MAX_FORM_PARTS=config.max_batch + OTHER_FIELDS)
    app.url_map.merge_slashes = False  # /v2/models//ready returns 404; by default, Flask would redirect the client
    logs.logger.setLevel(config.log_level.upper())
    metrics.initialise(release.manifest.model, release.version)
    served = {"model": release.manifest.model, "version": release.version, "authentication": bool(config.api_key)}
    logs.write(logging.INFO, "serving", pid=os.getpid(), **served)
    access_log.install(app, config.trusted_proxies)
    problem.install(app)
    if config.api_key:
        api_key.require_key(app, config.api_key)
    if config.cors_origins:
        _allow_origins(app, config.cors_origins.split())
    app.register_blueprint(predict.blueprint(config, release, predictor))
    app.register_blueprint(open_inference.blueprint(config, release, predictor))
    app.register_blueprint(health.blueprint(predictor))
    app.register_blueprint(page.blueprint())
    return app


def _allow_origins(app: Flask, origins: list[str]) -> None:
    """Allow web pages of `origins` to call the service (cross-origin resource sharing). `*` allows every origin."""

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
