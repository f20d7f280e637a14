"""Request ids, access log and Prometheus metrics."""

import logging
import os
import re
import socket
import time
import uuid
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from flask import Request
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from serve import logs
from serve.config import Config
from serve.release import Release

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger("serve")
ID_FORM = re.compile(r"[A-Za-z0-9._:-]{1,128}")
LONGEST = 1_000  # characters of a path in the log, so that a pipe takes a line in one atomic write
# Bucket bounds of the confidence histogram: nearly all digits are above 0.99, other images often below.
CONFIDENCES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1)
REQUEST_ID, IMAGES_PREDICTED = "serve.request_id", "serve.images"  # keys of a request's WSGI environment

REQUESTS = Counter("digits_requests", "Requests answered.", ["route", "method", "status"])
SECONDS = Histogram(
    "digits_request_duration_seconds",
    "Time from a request's headers to its response.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
IN_FLIGHT = Gauge("digits_requests_in_flight", "Requests in progress.", multiprocess_mode="livesum")
IMAGES = Counter("digits_images", "Images predicted.")
DIGITS = Counter("digits_predictions", "Images predicted, by digit.", ["digit"])
CONFIDENCE = Histogram("digits_confidence", "Probability of the predicted digit, per image.", buckets=CONFIDENCES)
DOUBTFUL = Counter("digits_doubtful", "Images predicted whose doubt is above the model's threshold.")
DROPPED = Counter("digits_log_lines_dropped", "Log lines that could not be written to standard error.")
MODEL = Gauge(
    "digits_model_info",
    "The served model and its host: the number of workers.",
    ["model", "version", "host"],
    multiprocess_mode="livesum",
)


class WorkerRestarts(Collector):
    """Collector of the worker restarts: gunicorn's master counts them, every worker exports the count."""

    def collect(self) -> Iterable[Metric]:
        """Return the metric."""
        from serve import wsgi  # not at the top: only gunicorn uses it, and it reads the environment

        yield CounterMetricFamily("digits_worker_restarts", "Workers that died and were replaced.", wsgi.deaths[0])


class Observer:
    """WSGI middleware: request id, access-log line and request metrics."""

    def __init__(self, application: "WSGIApplication") -> None:
        self._application = application

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Return the application's response with X-Request-ID and X-Content-Type-Options added."""
        start = time.perf_counter()
        sent = environ.get("HTTP_X_REQUEST_ID", "")
        request_id = environ[REQUEST_ID] = sent if ID_FORM.fullmatch(sent) else uuid.uuid4().hex

        def respond(line: str, headers: list[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
            _record(environ, line[:3], time.perf_counter() - start)
            headers += [("X-Request-ID", request_id), ("X-Content-Type-Options", "nosniff")]
            return start_response(line, headers, *exc_info)

        IN_FLIGHT.inc()
        try:
            return self._application(environ, respond)
        finally:
            IN_FLIGHT.dec()


def announce(config: Config, release: Release) -> None:
    """Log the served model at worker start, and initialise its metrics."""
    logs.on_drop[:] = [DROPPED.inc]
    SECONDS.labels("unmatched")  # now, so that the file of each metric type exists and has its disk space
    for digit in range(10):
        DIGITS.labels(digit)  # exported as 0 until it occurs: shares are of all ten
    MODEL.labels(release.manifest.model, release.version, socket.gethostname()).set(1)
    fields = {
        "pid": os.getpid(),
        "model": release.manifest.model,
        "version": release.version,
        "threads": config.threads,
        "authentication": bool(config.api_key),
    }
    logger.info("serving", extra={"fields": fields})


def count_predictions(request: Request, digits: list[int], confidences: list[float], doubtful: int) -> None:
    """Count the predictions of `request`: N digits, their N confidences, and how many of the images are doubtful."""
    request.environ[IMAGES_PREDICTED] = len(digits)
    IMAGES.inc(len(digits))
    for digit, count in Counts(digits).items():
        DIGITS.labels(digit).inc(count)
    # As Histogram.observe, but once per bucket: its 4 µs per image would be 4 of the 20 ms of a thousand images.
    for bucket, count in Counts(bisect_left(CONFIDENCES, confidence) for confidence in confidences).items():
        CONFIDENCE._buckets[bucket].inc(count)
    CONFIDENCE._sum.inc(sum(confidences))
    if doubtful:
        DOUBTFUL.inc(doubtful)


def _record(environ: "WSGIEnvironment", status: str, seconds: float) -> None:
    """Count a request and write its access-log line."""
    request = environ["werkzeug.request"]  # Flask's, available until its response has begun
    rule = request.url_rule
    method = environ["REQUEST_METHOD"]
    route = rule.rule if rule else "unmatched"
    REQUESTS.labels(route, method if rule else "any", status).inc()
    SECONDS.labels(route).observe(seconds)
    level = logging.ERROR if status >= "500" else logging.INFO
    if logger.isEnabledFor(level):
        logs.write(
            level,
            "request",
            request_id=environ[REQUEST_ID],
            remote=environ.get("REMOTE_ADDR"),
            method=method,
            path=request.path[:LONGEST],
            status=int(status),
            images=environ.get(IMAGES_PREDICTED, 0),
            milliseconds=round(seconds * 1000, 3),
        )
