"""Prometheus metrics of a real gunicorn."""

import socket
import time

import numpy as np
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from serve.release import read
from train.paths import RELEASE

RAW = {"Content-Type": "application/octet-stream"}


def metrics(service):
    """Return /metrics as {(name, labels): value}."""
    text = requests.get(f"{service.url}/metrics").text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


def change(before, after, name, **labels):
    key = name, tuple(sorted(labels.items()))
    return after.get(key, 0) - before.get(key, 0)


def test_metrics_count_requests_over_all_workers(service, images):
    before, began = metrics(service), time.monotonic()
    for _ in range(20):
        assert requests.post(f"{service.url}/predict", images[[0, 2, 5]].tobytes(), headers=RAW).ok  # 7, 1, 1
    assert requests.post(f"{service.url}/predict", b"x", headers=RAW).status_code == 422
    assert requests.get(f"{service.url}/no/such/path").status_code == 404
    assert requests.get(f"{service.url}/v2/models/letters").status_code == 404
    took, after = time.monotonic() - began, metrics(service)
    predicted = {"route": "/predict", "method": "POST"}
    assert change(before, after, "digits_requests_total", **predicted, status="200") == 20
    assert change(before, after, "digits_requests_total", **predicted, status="422") == 1
    assert change(before, after, "digits_requests_total", route="unmatched", method="any", status="404") == 1
    assert change(before, after, "digits_requests_total", route="/v2/models/<model>", method="GET", status="404") == 1
    assert change(before, after, "digits_images_total") == 60
    assert [change(before, after, "digits_predictions_total", digit=str(digit)) for digit in (7, 1, 2)] == [20, 40, 0]
    assert change(before, after, "digits_request_duration_seconds_count", route="/predict") == 21
    assert 0 < change(before, after, "digits_request_duration_seconds_sum", route="/predict") < took
    assert after["digits_requests_in_flight", ()] == 1  # this one
    model = (("host", socket.gethostname()), ("model", "Model_3"), ("version", read(RELEASE).version))
    # A worker that has just started does not yet report.
    service.wait(lambda: metrics(service)["digits_model_info", model] == len(service.workers()))


def test_metrics_have_a_histogram_of_confidence(service, images):
    before = metrics(service)
    answer = requests.post(f"{service.url}/predict", images[:300].tobytes(), headers=RAW).json()
    confidences = [prediction["confidence"] for prediction in answer["predictions"]]
    single = requests.post(f"{service.url}/predict", json={"image": images[8].tolist()}).json()  # a 5 like a 6
    confidences.append(single["predictions"][0]["confidence"])
    tensor = {"name": "image", "datatype": "UINT8", "shape": [2, 28, 28], "data": images[[8, 9]].tolist()}
    inferred = requests.post(f"{service.url}/v2/models/digits/infer", json={"inputs": [tensor]}).json()["outputs"]
    (probabilities,) = [output["data"] for output in inferred if output["name"] == "probabilities"]
    confidences += [max(probabilities[:10]), max(probabilities[10:])]
    after = metrics(service)
    bounds = [dict(labels)["le"] for name, labels in after if name == "digits_confidence_bucket"]
    assert {"0.5", "0.99", "1.0", "+Inf"} <= set(bounds)
    for bound in bounds:
        expected = sum(confidence <= float(bound) for confidence in confidences)
        assert change(before, after, "digits_confidence_bucket", le=bound) == expected
    assert change(before, after, "digits_confidence_count") == 303
    assert change(before, after, "digits_confidence_sum") == pytest.approx(sum(confidences))


def test_metrics_count_doubtful_images_over_all_workers(service, images):
    before, turned, count = metrics(service), np.rot90(images[:20], axes=(1, 2)), 0
    for sent in (images[:20], turned, *turned[:, np.newaxis]):
        answer = requests.post(f"{service.url}/predict?preprocess=none", sent.tobytes(), headers=RAW).json()
        count += sum(prediction["doubtful"] for prediction in answer["predictions"])
    tensor = {"name": "image", "datatype": "UINT8", "shape": [20, 28, 28], "data": turned.reshape(-1).tolist()}
    inferred = requests.post(f"{service.url}/v2/models/digits/infer", json={"inputs": [tensor]}).json()["outputs"]
    (doubts,) = [output["data"] for output in inferred if output["name"] == "doubt"]
    count += sum(doubt > read(RELEASE).threshold for doubt in doubts)
    assert count > 20
    assert change(before, metrics(service), "digits_doubtful_total") == count


@pytest.mark.slow  # starts a service of its own
def test_metrics_are_continued_after_a_reload_and_a_death(start):
    service = start(WEB_CONCURRENCY=1)
    for count in range(1, 4):
        assert requests.get(f"{service.url}/no/such/path").status_code == 404
        (service.reload if count % 2 else service.kill_worker)()
        after = metrics(service)
        assert change({}, after, "digits_requests_total", route="unmatched", method="any", status="404") == count
        model = (("host", socket.gethostname()), ("model", "Model_3"), ("version", read(RELEASE).version))
        assert (after["digits_requests_in_flight", ()], after["digits_model_info", model]) == (1, 1)


@pytest.mark.slow  # starts a service of its own
def test_metrics_count_the_workers_that_died_and_not_those_of_a_reload(start):
    service = start(WEB_CONCURRENCY=2)
    restarts = "digits_worker_restarts_total", ()
    service.reload()
    assert metrics(service)[restarts] == 0
    for count in (1, 2, 3):
        service.kill_worker(-1)  # the newest, which may not have booted yet
        assert metrics(service)[restarts] == count
    assert service.stop() == 0
