"""Authentication: with API_KEY set, every route requires the key, except those marked public."""

import json

import pytest
import requests

from serve.app import create_app
from serve.config import Config
from tests.serve.conftest import RAW
from train.paths import ROOT

KEY = "s3cret/+=="  # base64, like the output of `openssl rand -base64`
HEADERS = {"Authorization": f"Bearer {KEY}"}
DOCUMENT = json.loads((ROOT / "serve/openapi.json").read_text())


@pytest.fixture(scope="module")
def app():
    return create_app(Config(api_key=KEY))


def test_every_route_that_requires_the_key_says_so_in_the_openapi_document(app):
    client, documented, refused = app.test_client(), set(), set()
    for path, item in DOCUMENT["paths"].items():
        for method in item.keys() - {"parameters"}:
            if item[method].get("security"):
                documented.add((method, path))
                assert "401" in item[method]["responses"]
            for sent in (method, "head") if method == "get" else (method,):
                address = path.format(model="digits", version="0", name="page.js")
                if client.open(address, method=sent).status_code == 401:
                    refused.add((method, path))
                    assert client.open(address, method=sent, headers=HEADERS).status_code != 401
    assert documented == refused
    assert {path for _, path in refused} >= {"/predict", "/v2", "/v2/models/{model}", "/v2/models/{model}/infer"}


def test_a_new_route_requires_the_key():
    app = create_app(Config(api_key=KEY))
    app.add_url_rule("/new", view_func=lambda: "secret")
    assert app.test_client().get("/new").status_code == 401


def test_a_request_with_the_key_and_a_preflight_without_it_are_served(app, images):
    client = app.test_client()
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {KEY}", **RAW}
        assert client.post("/predict", data=images[:1].tobytes(), headers=headers).json["predictions"][0]["digit"] == 7
    assert client.options("/predict", headers={"Origin": "https://a.example"}).status_code == 200


@pytest.mark.parametrize(
    "sent", [None, KEY, f"Basic {KEY}", *(f"Bearer {key}" for key in ("é", f"{KEY}x", KEY[:-1], KEY.upper()))]
)
def test_a_request_without_the_right_key_is_refused(app, images, sent):
    headers = RAW | ({"Authorization": sent} if sent else {})
    answer = app.test_client().post("/predict", data=images[:1].tobytes(), headers=headers)
    assert answer.status_code == 401
    assert answer.json["detail"].startswith("expected ")
    assert answer.headers["WWW-Authenticate"].lower().startswith("bearer")
    assert KEY not in answer.text
    protocol = app.test_client().post("/v2/models/digits/infer", data=b"{}", headers=headers)
    assert (protocol.status_code, list(protocol.json)) == (401, ["error"])


def test_the_key_is_never_logged(start, images):
    service = start(WEB_CONCURRENCY=1, API_KEY=KEY, LOG_LEVEL="debug")
    for headers in ({}, HEADERS, {"Authorization": f"Bearer {KEY}\x80"}):
        requests.post(f"{service.url}/predict", images[:1].tobytes(), headers=headers | RAW)
    assert service.stop() == 0
    assert len([line for line in service.lines() if line.get("path") == "/predict"]) >= 2
    assert KEY not in service.log.read_text()
    assert json.dumps(KEY) not in service.log.read_text()
