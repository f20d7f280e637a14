"""Prometheus metrics: their definitions, and the functions that count requests and predictions."""

import socket
from bisect import bisect_left
from collections.abc import Iterable
from functools import cache

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from serve import logs
from serve.release import Release

# Bucket bounds of the confidence histogram: nearly all digits are above 0.99, other images often below.
CONFIDENCES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1)

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

# A metric's child by its labels. Counting one JSON request needs three of them; uncached, they are 4 % of its CPU time.
_requests, _seconds, _digits = cache(REQUESTS.labels), cache(SECONDS.labels), cache(DIGITS.labels)


class WorkerRestarts(Collector):
    """Collector of the worker restarts: gunicorn's master counts them, every worker exports the count."""

    def collect(self) -> Iterable[Metric]:
        """Return the metric."""
        from serve import wsgi  # not at the top: only gunicorn uses it, and it reads the environment

        yield CounterMetricFamily("digits_worker_restarts", "Workers that died and were replaced.", wsgi.deaths[0])


def initialise(release: Release) -> None:
    """Export the served model, and the metrics that are zero until something is counted. Call it in every worker."""
    logs.on_drop[:] = [DROPPED.inc]
    SECONDS.labels("unmatched")  # now, so that the file of each metric type exists and has its disk space
    for digit in range(10):
        DIGITS.labels(digit)  # exported as 0 until it occurs: shares are of all ten
    MODEL.labels(release.manifest.model, release.version, socket.gethostname()).set(1)


def count_request(route: str, method: str, status: str, seconds: float) -> None:
    """Count a request to `route`, which was answered with `status` after so many seconds."""
    _requests(route, method, status).inc()
    _seconds(route).observe(seconds)


def count_predictions(digits: list[int], confidences: list[float], doubtful: int) -> None:
    """Count predictions: N digits, their N confidences, and how many of the images are doubtful."""
    IMAGES.inc(len(digits))
    for digit, count in _count(digits).items():
        _digits(digit).inc(count)
    # As Histogram.observe, but once per bucket: its 4 µs per image would be 4 of the 20 ms of a thousand images.
    for bucket, count in _count([bisect_left(CONFIDENCES, confidence) for confidence in confidences]).items():
        CONFIDENCE._buckets[bucket].inc(count)
    CONFIDENCE._sum.inc(sum(confidences))
    if doubtful:
        DOUBTFUL.inc(doubtful)


def _count(values: list[int]) -> dict[int, int]:
    """Return how often each of a few different values occurs. For one image faster than collections.Counter."""
    return {value: values.count(value) for value in set(values)}
