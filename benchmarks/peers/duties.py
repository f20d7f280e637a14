"""What an operator adds to a peer: Prometheus metrics, a JSON access log, a request id and a body limit.

`Duties` is ASGI middleware for FastAPI and LitServe; `add_to_flask` does the same in Flask. Both are as short
as they can be, without the layers of a packaged instrumentator. The ASGI limit reads Content-Length only.
"""

import json
import logging
import sys
import time
import uuid

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest, make_asgi_app
from prometheus_client.multiprocess import MultiProcessCollector

BODY_LIMIT = 16 * 2**20  # bytes, as MAX_BODY_BYTES of our service
REQUESTS = Counter("http_requests", "Requests answered.", ["route", "method", "status"])
SECONDS = Histogram("http_request_duration_seconds", "Time until the response starts.", ["route"])
METRICS = CollectorRegistry()  # of all workers, from PROMETHEUS_MULTIPROC_DIR
MultiProcessCollector(METRICS)


class JSONFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record):
        """Return the line."""
        head = {"time": self.formatTime(record), "level": record.levelname, "message": record.getMessage()}
        return json.dumps(head | record.fields)


access_log = logging.getLogger("access")
access_log.setLevel(logging.INFO)
access_log.propagate = False
access_log.addHandler(logging.StreamHandler(sys.stderr))
access_log.handlers[0].setFormatter(JSONFormatter())


def record(route, method, path, status, request_id, remote, start):
    """Count a request and write its line to the access log. `start` is by time.perf_counter."""
    seconds = time.perf_counter() - start
    REQUESTS.labels(route, method, status).inc()
    SECONDS.labels(route).observe(seconds)
    fields = {"request_id": request_id, "remote": remote, "method": method, "path": path, "status": status}
    access_log.info("request", extra={"fields": fields | {"milliseconds": round(1000 * seconds, 3)}})


class Duties:
    """ASGI middleware that performs the duties and answers /metrics."""

    metrics = staticmethod(make_asgi_app(METRICS))

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        """Answer a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"] == "/metrics":
            return await self.metrics(scope, receive, send)
        start, headers = time.perf_counter(), dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"").decode("latin-1") or uuid.uuid4().hex

        async def respond(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode("latin-1"))]
                route = scope["path"] if "endpoint" in scope else "unmatched"  # no route here has parameters
                remote = scope["client"] and scope["client"][0]
                record(route, scope["method"], scope["path"], message["status"], request_id, remote, start)
            await send(message)

        if int(headers.get(b"content-length", 0)) > BODY_LIMIT:
            await respond({"type": "http.response.start", "status": 413, "headers": [(b"content-length", b"0")]})
            return await respond({"type": "http.response.body"})
        return await self.app(scope, receive, respond)


def add_to_flask(app):
    """Add the duties and /metrics to a Flask application."""
    from flask import Response, g, request

    app.config["MAX_CONTENT_LENGTH"] = BODY_LIMIT

    @app.before_request
    def begin():
        g.start = time.perf_counter()
        g.request_id = request.headers.get("X-Request-ID") or uuid.uuid4().hex

    @app.after_request
    def end(response):
        response.headers["X-Request-ID"] = g.request_id
        route = request.url_rule.rule if request.url_rule else "unmatched"
        record(route, request.method, request.path, response.status_code, g.request_id, request.remote_addr, g.start)
        return response

    @app.route("/metrics")
    def metrics():
        return Response(generate_latest(METRICS), content_type=CONTENT_TYPE_LATEST)
