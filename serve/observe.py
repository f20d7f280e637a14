"""What the service says of itself: a request id, a log line and metrics for every request."""

import logging
import os
import re
import socket
import time
import uuid
from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Callable, Iterable, Mapping
from functools import cache
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
LONGEST = 1_000  # characters of a path in the log: a line fits into what a pipe takes at once
# Bounds of the confidence histogram: nearly all digits are above 0.99, what is no digit is often below.
CONFIDENCES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1)
REQUEST_ID, IMAGES_PREDICTED = "serve.request_id", "serve.images"  # keys of a request's WSGI environment

REQUESTS = Counter("digits_requests", "Requests answered.", ["route", "method", "status"])
SECONDS = Histogram(
    "digits_request_duration_seconds",
    "Time from a request's head to its answer.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
IN_FLIGHT = Gauge("digits_requests_in_flight", "Requests being answered.", multiprocess_mode="livesum")
IMAGES = Counter("digits_images", "Images predicted.")
DIGITS = Counter("digits_predictions", "Images predicted, by the digit found.", ["digit"])
CONFIDENCE = Histogram("digits_confidence", "Probability of the digit found, an image.", buckets=CONFIDENCES)
DROPPED = Counter("digits_log_lines_dropped", "Lines of the log that standard error did not take.")
MODEL = Gauge(
    "digits_model_info",
    "The model that is served, and where: 1 a worker.",
    ["model", "version", "host"],
    multiprocess_mode="livesum",
)


class WorkerRestarts(Collector):
    """Collector of the metric that gunicorn's master counts and every worker shows."""

    def collect(self) -> Iterable[Metric]:
        """Return the metric."""
        from serve import wsgi  # not above: it is gunicorn's alone, and reads the environment

        yield CounterMetricFamily("digits_worker_restarts", "Workers that died and were replaced.", wsgi.deaths[0])


class Observer:
    """WSGI middleware: gives every request an id, a line in the log and its place in the metrics."""

    def __init__(self, application: "WSGIApplication") -> None:
        self._application = application

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """Answer as the application does, with two headers more."""
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
    """Say in the log and the metrics what this worker serves."""
    logs.on_drop[:] = [DROPPED.inc]
    _seconds("unmatched")  # now, that every kind of metric has its file, and room in it
    for digit in range(10):
        _digit(digit)  # 0 until it is found: a share is of all ten
    MODEL.labels(release.manifest.model, release.version, socket.gethostname()).set(1)
    fields = {
        "pid": os.getpid(),
        "model": release.manifest.model,
        "version": release.version,
        "threads": config.threads,
        "authentication": bool(config.api_key),
    }
    logger.info("serving", extra={"fields": fields})


def count_predictions(request: Request, digits: list[int], confidences: list[float]) -> None:
    """Count the predictions of `request`: N digits, and the confidence of each."""
    request.environ[IMAGES_PREDICTED] = len(digits)
    IMAGES.inc(len(digits))
    for digit, count in _tally(digits).items():
        _digit(digit).inc(count)
    # As Histogram.observe does, but a bucket at a time: its 4 µs an image are 4 ms of a thousand's 20.
    for bucket, count in _tally([bisect_left(CONFIDENCES, confidence) for confidence in confidences]).items():
        CONFIDENCE._buckets[bucket].inc(count)
    CONFIDENCE._sum.inc(sum(confidences))


def _tally(values: list[int]) -> Mapping[int, int]:
    """Return how often each value occurs; most requests have one image, for which Counter takes five times as long."""
    return Counts(values) if len(values) > 1 else dict.fromkeys(values, 1)


def _record(environ: "WSGIEnvironment", status: str, seconds: float) -> None:
    asked = environ["werkzeug.request"]  # Flask's, there until its answer has begun
    rule = asked.url_rule
    method = environ["REQUEST_METHOD"]
    _requests(rule.rule if rule else "unmatched", method if rule else "any", status).inc()
    _seconds(rule.rule if rule else "unmatched").observe(seconds)
    level = logging.ERROR if status >= "500" else logging.INFO
    if logger.isEnabledFor(level):
        logs.write(
            level,
            "request",
            request_id=environ[REQUEST_ID],
            remote=environ.get("REMOTE_ADDR"),
            method=method,
            path=asked.path[:LONGEST],
            status=int(status),
            images=environ.get(IMAGES_PREDICTED, 0),
            milliseconds=round(seconds * 1000, 3),
        )


# A metric's child is looked up by hashing its labels under a lock: once for each, not once a request.
_requests = cache(lambda route, method, status: REQUESTS.labels(route, method, status))
_seconds = cache(SECONDS.labels)
_digit = cache(DIGITS.labels)
