"""The service in Flask and FastAPI, as in a tutorial: one image in JSON, one ONNX Runtime thread per process.

If the environment variable DUTIES is not empty, each service has two duties: Prometheus metrics and a JSON access log,
in as little code as possible, without an instrumentation package. The service in LitServe is benchmarks.litserve_peer.
"""

import json
import os
import sys
import time
from functools import cache
from typing import Annotated

import numpy as np
import onnxruntime
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, make_asgi_app
from prometheus_client.multiprocess import MultiProcessCollector

REQUESTS = Counter("http_requests", "Requests answered.", ["route", "method", "status"])
SECONDS = Histogram("http_request_duration_seconds", "Time until the response starts.", ["route"])
METRICS = CollectorRegistry()  # metrics of all workers, from PROMETHEUS_MULTIPROC_DIR
MultiProcessCollector(METRICS)


@cache
def session():
    """Return this process's ONNX Runtime session. The environment variable GRAPH is the path of the graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(os.environ["GRAPH"], options)


def predict_image(rows):
    """Return the prediction for an image: 28 rows of 28 numbers, 0–255."""
    image = np.array(rows, dtype=np.uint8)[None]
    probabilities, digits = session().run(["probabilities", "digit"], {"image": image})
    confidence = float(probabilities.max())
    return {"digit": int(digits[0]), "confidence": confidence, "probabilities": probabilities[0].tolist()}


def flask_app():
    """Return the service as a Flask application, which performs the duties if the variable DUTIES is not empty."""
    from flask import Flask, g, request

    app = Flask(__name__)

    @app.post("/predict")
    def predict():
        return predict_image(request.get_json()["image"])

    if not os.environ["DUTIES"]:
        return app

    @app.before_request
    def begin():
        g.start = time.perf_counter()

    @app.after_request
    def end(response):
        route = request.url_rule.rule if request.url_rule else "unmatched"
        record(g.start, request.remote_addr, request.method, request.path, route, response.status_code)
        return response

    @app.get("/metrics")
    def metrics():
        return generate_latest(METRICS)

    return app


def fastapi_app():
    """Return the service as a FastAPI application, which performs the duties if the variable DUTIES is not empty."""
    from fastapi import FastAPI
    from pydantic import BaseModel, Field
    from starlette.middleware import Middleware

    class Body(BaseModel):
        image: list[list[Annotated[int, Field(ge=0, le=255)]]]

    class Prediction(BaseModel):
        digit: int
        confidence: float
        probabilities: list[float]

    app = FastAPI(middleware=[Middleware(duties) for duties in MIDDLEWARE])

    @app.post("/predict")
    async def predict(body: Body) -> Prediction:
        return Prediction(**predict_image(body.image))

    return app


def record(start, remote, method, path, route, status):
    """Count a request and write its line to the access log. `start` is a time of time.perf_counter."""
    seconds = time.perf_counter() - start
    REQUESTS.labels(route, method, status).inc()
    SECONDS.labels(route).observe(seconds)
    line = {"time": time.strftime("%FT%TZ", time.gmtime()), "level": "INFO", "message": "request", "remote": remote}
    line |= {"method": method, "path": path, "status": status, "milliseconds": round(1000 * seconds, 3)}
    print(json.dumps(line), file=sys.stderr)


class Duties:
    """ASGI middleware for FastAPI and LitServe that performs the duties (metrics and access log)."""

    metrics = staticmethod(make_asgi_app(METRICS))

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        """Answer a request. Count and log it when its response starts, except a request for /metrics."""
        start = time.perf_counter()

        async def respond(message):
            if message["type"] == "http.response.start":
                route = scope["path"] if "endpoint" in scope else "unmatched"  # path = route: no route has parameters
                remote = scope["client"] and scope["client"][0]
                record(start, remote, scope["method"], scope["path"], route, message["status"])
            await send(message)

        if scope["type"] == "http" and scope["path"] == "/metrics":
            return await self.metrics(scope, receive, send)
        return await self.app(scope, receive, respond)


MIDDLEWARE = [Duties] if os.environ["DUTIES"] else []
