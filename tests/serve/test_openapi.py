"""serve/openapi.json is valid and complete, and the service answers generated requests as the document says."""

import json
from collections import Counter

import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from serve.app import create_app
from serve.config import RELEASE, Config
from serve.release import read
from tests.polling import PATIENCE
from tests.serve.hostile import encode
from train.paths import ROOT

DOCUMENT = json.loads((ROOT / "serve" / "openapi.json").read_bytes())
VERSION = read(RELEASE).version
OPERATIONS = {
    operation["operationId"]: (method.upper(), path)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method != "parameters"
}

# Allowed statuses for a request that matches the schema; only 200 for an operation that is missing here. A schema
# cannot say which bytes are a picture, how many bytes N images have, or that the values of a tensor match its shape.
ACCEPTED = {"predict": {200, 422}, "v2Infer": {200, 400, 413}, "v2InferVersion": {200, 400, 413}, "static": {200, 404}}
REFUSED = {400, 404, 405, 415, 422}  # allowed for a request that does not match the schema
# Statuses that must occur, so that the requests are varied enough; 200 and 405 for an operation that is missing here.
REACHED = {
    "predict": {200, 400, 405, 415, 422},
    "v2Infer": {200, 400, 404, 405, 413},
    "v2InferVersion": {200, 400, 404, 405, 413},
    "v2Model": {200, 404, 405},
}
GENERATED = {"predict": 600, "v2Infer": 400, "v2InferVersion": 200}  # number of random requests; other operations: 50


def example(name):
    return DOCUMENT["components"]["examples"][name]["value"]


def test_document_is_valid_and_served(client):
    assert DOCUMENT["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert client.get("/openapi.json").json == DOCUMENT


def test_document_describes_exactly_the_routes():
    served = {
        (method, rule.rule.replace("<", "{").replace(">", "}"))
        for rule in create_app(Config()).url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}  # Flask itself answers these two methods
    }
    assert sorted(OPERATIONS.values()) == sorted(served)


@pytest.mark.parametrize("name", ["Picture", "DataURLs", "Rows"])
def test_request_examples_are_answered(client, name):
    answer = client.post("/predict", json=example(name))
    assert answer.status_code == 200, answer.text
    assert [prediction["digit"] for prediction in answer.json["predictions"]] == [7]
    assert answer.json.keys() == example("Predictions").keys()
    assert answer.json["predictions"][0].keys() == example("Predictions")["predictions"][0].keys()


def test_examples_of_the_open_inference_protocol_are_exact(client):
    answer = client.post("/v2/models/digits/infer", json=example("V2InferenceRequest"))
    assert answer.json == example("V2InferenceResponse") | {"model_version": VERSION}
    assert client.get("/v2/models/digits").json == example("V2Model") | {"versions": [VERSION]}


@pytest.fixture
def described(service, name):
    accepted = ACCEPTED.get(name, {200})
    config = {
        "base-url": service.url,
        "seed": 1,
        "continue-on-failure": True,
        "parameters": {"path.version": VERSION},  # schemathesis cannot guess the version
        "generation": {"database": "none", "max-examples": GENERATED.get(name, 50)},
        "phases": {"stateful": {"enabled": False}},  # requests do not affect each other
        "checks": {
            "positive_data_acceptance": {"expected-statuses": sorted(accepted)},
            # A request that does not match the schema can also be too large (413).
            "negative_data_rejection": {"expected-statuses": sorted(REFUSED | accepted & {413})},
        },
        "operations": [{"include-operation-id": other, "enabled": other == name} for other in OPERATIONS],
    }
    document = requests.get(f"{service.url}/openapi.json", timeout=PATIENCE).json()
    return schemathesis.openapi.from_dict(document, config=SchemathesisConfig.from_dict(config))


@pytest.fixture(scope="module")
def bodies():
    """Let schemathesis generate bodies that are pictures, damaged pictures and pixels, besides random bytes."""
    sides = st.integers(1, 80)
    for media_type in DOCUMENT["paths"]["/predict"]["post"]["requestBody"]["content"]:
        if media_type.startswith("image/"):
            pictures = st.builds(picture, st.just(media_type.removeprefix("image/")), sides, sides)
            damaged = st.builds(lambda content, share: content[: int(len(content) * share)], pictures, st.floats(0, 1))
            schemathesis.openapi.media_type(media_type, st.one_of(st.binary(), pictures, damaged))
    pixels = st.builds(lambda count, grey: bytes([grey, 255]) * 392 * count, st.integers(1, 3), st.integers(0, 255))
    schemathesis.openapi.media_type("application/octet-stream", st.one_of(st.binary(), pixels))


def picture(kind, width, height):
    return encode(np.random.default_rng(width).integers(0, 256, (height, width), np.uint8), kind)


def run(schema):
    """Run schemathesis and return the number of responses by status, and the failures as text."""
    statuses, failures = Counter(), []
    for event in from_schema(schema).execute():
        assert not isinstance(event, (events.NonFatalError, events.FatalError)), event
        if isinstance(event, events.ScenarioFinished):
            for interaction in event.recorder.interactions.values():
                statuses[interaction.response and interaction.response.status_code] += 1
            for check in (check for checks in event.recorder.checks.values() for check in checks):
                if check.failure_info:
                    failure, request = check.failure_info.failure, check.failure_info.code_sample
                    failures.append(f"{failure.title}: {failure.message}\n{request}")
    return statuses, failures


@pytest.mark.slow
@pytest.mark.usefixtures("bodies")
@pytest.mark.parametrize("name", OPERATIONS)
def test_responses_to_generated_requests_match_the_document(described, name):
    statuses, failures = run(described)
    assert not failures, f"{len(failures)} failures; the first:\n{failures[0]}"
    assert statuses.keys() >= REACHED.get(name, {200, 405})
    assert statuses.total() >= GENERATED.get(name, 50)


@pytest.mark.parametrize("name", ["predict", "v2Infer"])
@pytest.mark.parametrize("status", [401, 413])
def test_responses_401_and_413_match_the_document(name, status):
    """The application has an API key and a limit of 1,000 bytes per request."""
    app = create_app(Config(api_key="key", max_body_bytes=1_000))
    method, path = OPERATIONS[name]
    headers = {"Content-Type": "application/octet-stream"} | ({} if status == 401 else {"Authorization": "Bearer key"})
    answer = app.test_client().post(path.format(model="digits"), data=bytes(1_001), headers=headers)
    assert answer.status_code == status
    schemathesis.openapi.from_wsgi("/openapi.json", app)[path][method].validate_response(answer)
    response = DOCUMENT["paths"][path]["post"]["responses"][str(status)]["$ref"].rpartition("/")[2]
    assert set(DOCUMENT["components"]["responses"][response]["headers"]) <= set(answer.headers.keys())
