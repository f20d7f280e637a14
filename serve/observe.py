"""What the service says of itself: a request id, a log line and metrics for every request."""

import logging
import os
import re
import socket
import time
import uuid
from collections import Counter as Tally
from functools import cache

from flask import Flask, Response, g, request
from prometheus_client import Counter, Gauge, Histogram

from serve import logs
from serve.config import Config
from serve.release import Release

logger = logging.getLogger("serve")
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

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
MODEL = Gauge(
    "digits_model_info",
    "The model that is served, and where: 1 a worker.",
    ["model", "version", "host"],
    multiprocess_mode="livesum",
)


def install(app: Flask, config: Config, release: Release) -> None:
    """Observe every request of `app`."""
    logs.install(config.log_level)
    MODEL.labels(release.manifest.model, release.version, socket.gethostname()).set(1)
    app.before_request(_begin)
    app.after_request(_end)
    app.teardown_request(lambda _: IN_FLIGHT.dec() if g.pop("observed", False) else None)
    logger.info(
        "serving",
        extra={
            "fields": {
                "pid": os.getpid(),
                "model": release.manifest.model,
                "version": release.version,
                "threads": config.threads,
                "authentication": bool(config.api_key),
            }
        },
    )


def count_predictions(digits: list[int]) -> None:
    """Count `digits` as predicted, and for the log line of this request."""
    g.images = len(digits)
    IMAGES.inc(len(digits))
    for digit, count in Tally(digits).items():
        _digit(digit).inc(count)


def _begin() -> None:
    g.start = time.perf_counter()
    g.observed = True
    sent = request.headers.get("X-Request-ID", "")
    g.request_id = sent if REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
    IN_FLIGHT.inc()


def _end(response: Response) -> Response:
    seconds = time.perf_counter() - g.start
    route = request.url_rule.rule if request.url_rule else "unmatched"
    _requests(route, request.method if request.url_rule else "any", response.status_code).inc()
    _seconds(route).observe(seconds)
    response.headers["X-Request-ID"] = g.request_id
    response.headers["X-Content-Type-Options"] = "nosniff"
    logger.log(
        logging.ERROR if response.status_code >= 500 else logging.INFO,
        "request",
        extra={
            "fields": {
                "request_id": g.request_id,
                "remote": request.remote_addr,
                "method": request.method,
                "path": request.path,
                "status": response.status_code,
                "images": g.get("images", 0),
                "milliseconds": round(seconds * 1000, 3),
            }
        },
    )
    return response


# A metric's child is looked up by hashing its labels under a lock: once for each, not once a request.
_requests = cache(lambda route, method, status: REQUESTS.labels(route, method, status))
_seconds = cache(SECONDS.labels)
_digit = cache(DIGITS.labels)
