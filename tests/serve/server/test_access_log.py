"""Request ids and log lines. Most tests use a real gunicorn."""

import json
import logging
import os
import re
import sys
import time
from select import PIPE_BUF

import pytest
import requests

from serve.app import create_app
from serve.config import Config, Networks
from serve.server.logs import StandardError
from tests.serve.conftest import RAW, inference


def logged(service, request_id, path="/nowhere", method="GET", body=None, **headers):
    headers = {"X-Request-ID": request_id, **headers}
    answer = requests.request(method, service.url + path, data=body, headers=headers)
    assert answer.headers["X-Request-ID"] == request_id
    (line,) = service.wait_for_lines("request_id", request_id)
    return line


def test_a_probe_that_fails_is_logged_as_an_error(monkeypatch, capfd):
    client = create_app().test_client()
    monkeypatch.setattr("serve.predictor.Predictor.probe", lambda self: 1 / 0)
    client.get("/readyz")
    lines = map(json.loads, capfd.readouterr().err.splitlines())
    assert [line["level"] for line in lines if line["message"] == "request"] == ["error"]


def test_every_request_has_one_line_of_json(service, images):
    pixels, tensor = images[:3].tobytes(), json.dumps(inference(images[:2]))
    for path, method, body, expected in (
        ("/predict?preprocess=none", "POST", pixels, {"path": "/predict", "status": 200, "images": 3}),
        ("/v2/models/digits/infer", "POST", tensor, {"path": "/v2/models/digits/infer", "status": 200, "images": 2}),
        ("/nowhere", "GET", None, {"path": "/nowhere", "status": 404}),  # an error of the client has level info
    ):
        began = time.monotonic()
        line = logged(service, f"order-66_a.b:{path[1]}", path, method, body, **RAW)
        assert 0 < line["milliseconds"] < 1000 * (time.monotonic() - began)
        assert line.items() >= {"level": "info", "method": method, **expected}.items()


@pytest.mark.parametrize("sent", [None, "two words", '"}{', "x" * 129])
def test_a_request_id_is_made_if_none_of_its_form_is_sent(service, sent):
    headers = {"X-Request-ID": sent.encode()} if sent else {}
    found = [requests.get(f"{service.url}/healthz", headers=headers).headers["X-Request-ID"] for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{32}", made) for made in found)
    assert found[0] != found[1]


def test_a_pipe_takes_a_long_message_and_traceback_in_one_write(monkeypatch):
    lines = []
    monkeypatch.setattr(os, "write", lambda _, line: lines.append(line))
    try:
        raise ValueError("é" * 1_000 + "expected this, found that")  # noqa: TRY301
    except ValueError:
        record = logging.LogRecord("serve", logging.ERROR, __file__, 1, "é" * 4_000, None, sys.exc_info())
    StandardError().emit(record)
    (line,) = lines
    assert len(line) < PIPE_BUF
    assert json.loads(line)["message"].startswith("é" * 100)
    assert json.loads(line)["traceback"].endswith("expected this, found that")


def test_a_pipe_takes_the_longest_line_in_one_write_also_of_a_malformed_request(service):
    logged(service, "x" * 128, f"/{'%01' * 1_300}")
    answer = service.exchange(b"nonsense" + b"\x80" * 4_000 + b"\r\n\r\n")
    (line,) = service.wait_for_lines("request_id", re.search(r"X-Request-ID: (\w+)", answer.decode())[1])
    assert "nonsense" in line["detail"]
    assert max(len(line) for line in service.log.read_bytes().splitlines()) < PIPE_BUF


@pytest.mark.slow
def test_a_malformed_request_is_logged_only_if_the_level_is_info(start):
    service = start(WEB_CONCURRENCY=1, LOG_LEVEL="error")
    assert service.exchange(b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert service.stop() == 0
    assert service.lines() == []


def test_log_lines_stay_lines_whatever_is_asked_for(service):
    assert logged(service, "lines", "/a%0a{%22b%22:1}%1b[31m")["path"] == '/a\n{"b":1}\x1b[31m'


@pytest.fixture
def line_of(capfd):

    def line_of(app, path, **headers):
        capfd.readouterr()
        app.test_client().get(path, headers=headers)
        lines = capfd.readouterr().err.splitlines()
        return json.loads(lines[-1]) if lines else None

    return line_of


def test_the_client_s_address_is_the_one_that_trusted_proxies_forward(line_of):
    assert Networks("10.0.0.0/8").include("::ffff:10.1.2.3")  # an IPv4 address in the form of IPv6
    app = create_app(Config(trusted_proxies=Networks("127.0.0.1, 10.0.0.0/8")))
    for sent, address in (
        ("198.51.100.1, 203.0.113.7", "203.0.113.7"),  # the first address may be a false claim of the client
        ("2001:db8::7,10.1.2.3", "2001:db8::7"),
        ("10.1.2.3", "10.1.2.3"),
        (",", "127.0.0.1"),
        ("unknown, 10.1.2.3", "unknown"),
    ):
        assert line_of(app, "/nowhere", **{"X-Forwarded-For": sent})["remote"] == address
    assert line_of(app, "/nowhere")["remote"] == "127.0.0.1"
    assert line_of(create_app(), "/nowhere", **{"X-Forwarded-For": "203.0.113.7"})["remote"] == "127.0.0.1"


def test_probes_are_logged_as_debug(line_of):
    paths = ["/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready", "/v2/models/digits/ready"]
    debug = create_app(Config(log_level="debug"))
    assert {line_of(debug, path)["level"] for path in paths} == {"debug"}
    assert line_of(debug, "/")["level"] == "info"
    quiet = create_app()
    assert [line_of(quiet, path) for path in paths] == [None] * len(paths)
