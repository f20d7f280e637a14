"""Prometheus metrics of a real gunicorn."""

import socket
import time

import numpy as np
import pytest
import requests

from serve.release import read
from tests.serve.conftest import IN_FLIGHT, inference
from train.paths import RELEASE

MODEL = (("host", socket.gethostname()), ("model", "Model_3"), ("version", read(RELEASE).version))
RESTARTS = "digits_worker_restarts_total", ()


def change(before, after, name, **labels):
    key = name, tuple(sorted(labels.items()))
    return after.get(key, 0) - before.get(key, 0)


def test_metrics_count_requests_over_all_workers(service, images):
    before, began = service.metrics(), time.monotonic()
    for _ in range(20):
        assert service.predict(images[[0, 2, 5]]).ok  # digits 7, 1, 1
    assert service.predict(images[0, 0]).status_code == 422
    assert requests.get(f"{service.url}/no/such/path").status_code == 404
    assert requests.get(f"{service.url}/v2/models/letters").status_code == 404
    took, after = time.monotonic() - began, service.metrics()
    predicted = {"route": "/predict", "method": "POST"}
    assert change(before, after, "digits_requests_total", **predicted, status="200") == 20
    assert change(before, after, "digits_requests_total", **predicted, status="422") == 1
    assert change(before, after, "digits_requests_total", route="unmatched", method="any", status="404") == 1
    assert change(before, after, "digits_requests_total", route="/v2/models/<model>", method="GET", status="404") == 1
    assert change(before, after, "digits_images_total") == 60
    assert [change(before, after, "digits_predictions_total", digit=str(digit)) for digit in (7, 1, 2)] == [20, 40, 0]
    assert change(before, after, "digits_request_duration_seconds_count", route="/predict") == 21
    assert 0 < change(before, after, "digits_request_duration_seconds_sum", route="/predict") < took
    assert after[IN_FLIGHT] == 1  # the request for the metrics is in flight itself
    # Wait, because a worker that has just started does not yet export this metric.
    service.wait(lambda: service.metrics()["digits_model_info", MODEL] == len(service.workers()))


def test_metrics_have_a_histogram_of_confidence_and_count_doubtful_images(service, images):
    before, turned, answered = service.metrics(), np.rot90(images[:20], axes=(1, 2)), []
    for sent in (images[:300], turned, *turned[:, np.newaxis]):
        answered += service.predict(sent, "?preprocess=none").json()["predictions"]
    body = inference(np.concatenate([turned, images[[8]]]))  # the last image is a 5 that looks like a 6
    outputs = requests.post(f"{service.url}/v2/models/digits/infer", json=body).json()["outputs"]
    tensors = {output["name"]: output["data"] for output in outputs}
    confidences = [prediction["confidence"] for prediction in answered]
    confidences += np.reshape(tensors["probabilities"], (-1, 10)).max(axis=1).tolist()
    doubtful = sum(prediction["doubtful"] for prediction in answered)
    doubtful += sum(doubt > read(RELEASE).manifest.doubt.threshold for doubt in tensors["doubt"])
    after = service.metrics()
    bounds = [dict(labels)["le"] for name, labels in after if name == "digits_confidence_bucket"]
    assert {"0.5", "0.99", "1.0", "+Inf"} <= set(bounds)
    for bound in bounds:
        expected = sum(confidence <= float(bound) for confidence in confidences)
        assert change(before, after, "digits_confidence_bucket", le=bound) == expected
    assert change(before, after, "digits_confidence_count") == len(confidences) == 361
    assert change(before, after, "digits_confidence_sum") == pytest.approx(sum(confidences))
    assert change(before, after, "digits_doubtful_total") == doubtful > 20


@pytest.mark.slow  # starts a service of its own
def test_metrics_are_continued_after_a_reload_and_a_death_and_count_the_deaths(start):
    service = start(WEB_CONCURRENCY=2)
    died = 0
    for count in range(1, 5):
        assert requests.get(f"{service.url}/no/such/path").status_code == 404
        if count % 2:
            service.reload()
        else:
            service.kill_worker(-1)  # the newest worker, which may not have booted yet
            died += 1
        after = service.metrics()
        assert change({}, after, "digits_requests_total", route="unmatched", method="any", status="404") == count
        assert (after[RESTARTS], after[IN_FLIGHT]) == (died, 1)
        service.wait(lambda: service.metrics()["digits_model_info", MODEL] == 2)  # the old worker is no longer counted
    assert service.stop() == 0
