"""Liveness, readiness and metrics: GET /healthz, /readyz and /metrics."""

import os

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from serve import metrics
from serve.api_key import public
from serve.predictor import Predictor


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
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:  # a single process, not gunicorn's workers
            return Response(generate_latest(), content_type=CONTENT_TYPE_LATEST)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        registry.register(metrics.WorkerRestarts())
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

    return routes
