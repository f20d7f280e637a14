"""Prometheus metrics of the service: definitions, counting, and the text format.

With gunicorn, each process writes its values to files in the folder that PROMETHEUS_MULTIPROC_DIR names, and every
worker returns the sums over all processes. This variable must be set before this module is imported.
"""

import os
import socket
from collections import Counter as Tally

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from serve.server import logs

REQUESTS = Counter("digits_requests", "Requests answered.", ["route", "method", "status"])
SECONDS = Histogram(
    "digits_request_duration_seconds",
    "Time from a request's headers to its response.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
IN_FLIGHT = Gauge("digits_requests_in_flight", "Requests in progress.", multiprocess_mode="livesum")
IMAGES = Counter("digits_images", "Images classified.")
DIGITS = Counter("digits_predictions", "Images classified, by predicted digit.", ["digit"])
CONFIDENCE = Histogram(
    "digits_confidence",
    "Probability of the predicted digit, per image.",
    # Nearly all digits have a confidence above 0.99. Many images that are not digits have a lower confidence.
    buckets=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1),
)
DOUBTFUL = Counter("digits_doubtful", "Images classified whose doubt is above the model's threshold.")
DROPPED = Counter("digits_log_lines_dropped", "Log lines that could not be written to standard error.")
RESTARTS = Counter("digits_worker_restarts", "Workers that died and were replaced.")
MODEL = Gauge(
    "digits_model_info",
    "Workers that serve the model, by model, version and host.",
    ["model", "version", "host"],
    multiprocess_mode="livesum",
)


def initialise(model: str, version: str) -> None:
    """Set the served model's metric to 1, and the count of every digit to 0. Call this function in every worker."""
    logs.on_drop = DROPPED.inc
    for digit in range(10):
        DIGITS.labels(digit)
    MODEL.labels(model, version, socket.gethostname()).set(1)


def count_request(route: str, method: str, status: int, seconds: float) -> None:
    """Count a request to `route`, which was answered with `status` after `seconds`."""
    REQUESTS.labels(route, method, status).inc()
    SECONDS.labels(route).observe(seconds)


def count_predictions(digits: list[int], confidences: list[float], doubtful: int) -> None:
    """Count predictions: N digits, their N confidences, and how many of the images are doubtful."""
    IMAGES.inc(len(digits))
    for digit, count in Tally(digits).items():
        DIGITS.labels(digit).inc(count)
    for confidence in confidences:
        CONFIDENCE.observe(confidence)
    DOUBTFUL.inc(doubtful)


def count_exit(pid: int, *, died: bool) -> None:
    """Delete the live metrics of worker `pid`. If the worker `died`, count a restart. Call this in the master."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]
    if died:
        RESTARTS.inc()


def render() -> bytes:
    """Return the metrics of all processes (without gunicorn: of this process) in Prometheus' text format."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
