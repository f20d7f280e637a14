"""Liveness, readiness and metrics: GET /healthz, /readyz and /metrics."""

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST

from serve.predictor import Predictor
from serve.server import metrics
from serve.server.api_key import public


def blueprint(predictor: Predictor) -> Blueprint:
    """Return the routes; /readyz runs `predictor` on a blank image."""
    routes = Blueprint("health", __name__)

    @routes.get("/healthz")
    @public
    def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @routes.get("/readyz")
    @public
    def readyz() -> dict[str, str]:
        predictor.probe()
        return {"status": "ready"}

    @routes.get("/metrics")
    @public
    def scrape() -> Response:
        return Response(metrics.render(), content_type=CONTENT_TYPE_LATEST)

    return routes
