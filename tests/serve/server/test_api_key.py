"""Authentication: with API_KEY set, every route requires the key, except those marked public."""

import json

import pytest
import requests

from serve.app import create_app
from serve.config import Config

KEY = "s3cret/+=="  # base64, like the output of `openssl rand -base64`
RAW = "application/octet-stream"
PUBLIC = {
    "/healthz",
    "/readyz",
    "/metrics",
    "/",
    "/static/<name>",
    "/openapi.json",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/<model>/ready",
    "/v2/models/<model>/versions/<version>/ready",
}


@pytest.fixture(scope="module")
def app():
    return create_app(Config(api_key=KEY))


def test_every_route_except_the_public_ones_requires_the_key(app):
    client, public = app.test_client(), set()
    for rule in app.url_map.iter_rules():
        path = rule.rule.replace("<name>", "page.js").replace("<model>", "digits").replace("<version>", "1")
        for method in rule.methods - {"OPTIONS"}:
            if client.open(path, method=method).status_code != 401:
                public.add(rule.rule)
            else:
                with_key = client.open(path, method=method, headers={"Authorization": f"Bearer {KEY}"})
                assert with_key.status_code != 401
    assert public == PUBLIC


def test_a_new_route_requires_the_key():
    app = create_app(Config(api_key=KEY))
    app.add_url_rule("/new", view_func=lambda: "secret")
    assert app.test_client().get("/new").status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_a_request_with_the_key_is_served(app, images, scheme):
    headers = {"Authorization": f"{scheme} {KEY}"}
    answer = app.test_client().post("/predict", data=images[:1].tobytes(), content_type=RAW, headers=headers)
    assert [prediction["digit"] for prediction in answer.json["predictions"]] == [7]


def test_a_preflight_has_no_key(app):
    assert app.test_client().options("/predict", headers={"Origin": "https://a.example"}).status_code == 200


@pytest.mark.parametrize(
    "sent", [None, KEY, f"Basic {KEY}", *(f"Bearer {key}" for key in ("é", f"{KEY}x", KEY[:-1], KEY.upper()))]
)
def test_a_request_without_the_right_key_is_refused(app, images, sent):
    headers = {"Authorization": sent} if sent else {}
    answer = app.test_client().post("/predict", data=images[:1].tobytes(), content_type=RAW, headers=headers)
    assert answer.status_code == 401
    assert answer.json["detail"].startswith("expected ")
    assert answer.headers["WWW-Authenticate"].lower().startswith("bearer")
    assert KEY not in answer.text
    protocol = app.test_client().post("/v2/models/digits/infer", data=b"{}", headers=headers)
    assert (protocol.status_code, list(protocol.json)) == (401, ["error"])


def test_the_key_is_never_logged(start, images):
    service = start(WEB_CONCURRENCY=1, API_KEY=KEY, LOG_LEVEL="debug")
    for headers in ({}, {"Authorization": f"Bearer {KEY}"}, {"Authorization": f"Bearer {KEY}\x80"}):
        requests.post(f"{service.url}/predict", images[:1].tobytes(), headers={**headers, "Content-Type": RAW})
    assert service.stop() == 0
    assert len([line for line in service.lines() if line.get("path") == "/predict"]) >= 2
    assert KEY not in service.log.read_text()
    assert json.dumps(KEY) not in service.log.read_text()
