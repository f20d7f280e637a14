"""Request ids and log lines of a real gunicorn."""

import re
import time

import pytest
import requests

RAW = {"Content-Type": "application/octet-stream"}


def test_every_request_has_one_line_of_json(service, images):
    sent = {**RAW, "X-Request-ID": "order-66_a.b:c"}
    began = time.monotonic()
    answer = requests.post(f"{service.url}/predict?preprocess=none", images[:3].tobytes(), headers=sent)
    took = time.monotonic() - began
    assert answer.headers["X-Request-ID"] == "order-66_a.b:c"
    (line,) = service.wait(lambda: [line for line in service.lines() if line.get("request_id") == "order-66_a.b:c"])
    assert (line["method"], line["path"], line["status"], line["images"]) == ("POST", "/predict", 200, 3)
    assert line["level"] == "info"
    assert 0 < line["milliseconds"] < 1000 * took


@pytest.mark.parametrize("sent", [None, "two words", '"}{', "x" * 129, "é"])
def test_a_request_id_is_made_if_none_of_its_form_is_sent(service, sent):
    headers = {"X-Request-ID": sent.encode()} if sent else {}
    found = [requests.get(f"{service.url}/healthz", headers=headers).headers["X-Request-ID"] for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{32}", made) for made in found)
    assert found[0] != found[1]


def test_log_lines_stay_lines_whatever_is_asked_for(service):
    requests.get(f"{service.url}/a%0a{{%22b%22:1}}%1b[31m")
    service.wait(lambda: [line for line in service.lines() if line.get("path") == '/a\n{"b":1}\x1b[31m'])
