"""serve/openapi.json: valid, complete, and true of the service, generated request by generated request."""

import io
import json
from collections import Counter

import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import strategies as st
from openapi_spec_validator import OpenAPIV31SpecValidator
from PIL import Image
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from serve import openapi
from serve.app import create_app
from serve.config import RELEASE, Config
from serve.release import read
from tests.polling import PATIENCE
from tests.serve.conftest import Service
from train.paths import ROOT

DOCUMENT = json.loads((ROOT / "serve" / "openapi.json").read_bytes())
VERSION = read(RELEASE).version
OPERATIONS = {
    operation["operationId"]: (method.upper(), path)
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method != "parameters"
}

# What a request of the document's form may be answered, where that is not 200 alone: no schema can say which bytes are
# a picture, how many bytes N images have, or that a tensor has the values of its shape.
ACCEPTED = {"predict": {200, 422}, "v2Infer": {200, 400, 413}, "v2InferVersion": {200, 400, 413}, "static": {200, 404}}
REFUSED = {400, 404, 405, 415, 422}  # what a request of another form may be answered
# What has to be answered among those requests, or they are too few or too alike; where it is not 200 and 405 alone.
REACHED = {
    "predict": {200, 400, 405, 415, 422},
    "v2Infer": {200, 400, 404, 405, 413},
    "v2InferVersion": {200, 400, 404, 405, 413},
    "v2Model": {200, 404, 405},
}
# How many requests are generated at random, and how many there are at least with those enumerated from the document.
GENERATED = {"predict": 1_000, "v2Infer": 400, "v2InferVersion": 200}
AT_LEAST = {"predict": 1_100, "v2Infer": 600, "v2InferVersion": 400}
SOME = 50  # where it is not said above


def example(name):
    return DOCUMENT["components"]["examples"][name]["value"]


def test_is_valid():
    assert DOCUMENT["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_describes_every_route_and_nothing_else():
    served = {
        (method, rule.rule.replace("<", "{").replace(">", "}"))
        for rule in create_app(Config()).url_map.iter_rules()
        for method in rule.methods - {"HEAD", "OPTIONS"}  # which Flask answers by itself
    }
    assert sorted(OPERATIONS.values()) == sorted(served)


def test_is_served(client):
    assert client.get("/openapi.json").json == DOCUMENT


def test_schemas_are_those_of_the_types_that_the_code_uses():
    assert openapi.FILE.read_text("utf-8") == openapi.document(), "expected what `make openapi` writes"


@pytest.mark.parametrize("name", ["Picture", "DataURLs", "Rows"])
def test_examples_of_requests_are_answered(client, name):
    answer = client.post("/predict", json=example(name))
    assert answer.status_code == 200, answer.text
    assert [prediction["digit"] for prediction in answer.json["predictions"]] == [7]
    assert answer.json.keys() == example("Predictions").keys()
    assert answer.json["predictions"][0].keys() == example("Predictions")["predictions"][0].keys()


def test_examples_of_the_protocol_are_its_answers(client):
    answer = client.post("/v2/models/digits/infer", json=example("V2InferenceRequest"))
    assert answer.json == example("V2InferenceResponse") | {"model_version": VERSION}
    assert client.get("/v2/models/digits").json == example("V2Model") | {"versions": [VERSION]}


def settings(operation, *phases, **more):
    """Return schemathesis' configuration for these phases of this operation alone."""
    config = {
        "seed": 1,
        "continue-on-failure": True,
        "parameters": {"path.version": VERSION},  # which no one could guess
        "generation": {"database": "none"},
        "phases": {
            phase: {"enabled": phase in phases}  # stateful never: no request changes what another is answered
            for phase in ("examples", "coverage", "fuzzing", "stateful")
        },
        "operations": [
            {
                "include-operation-id": name,
                "enabled": name == operation,
                "generation": {"max-examples": GENERATED.get(name, SOME)},
                "checks": {
                    "positive_data_acceptance": {"expected-statuses": sorted(ACCEPTED.get(name, {200}))},
                    # A request may be wrong and too large.
                    "negative_data_rejection": {
                        "expected-statuses": sorted(REFUSED | ACCEPTED.get(name, set()) & {413})
                    },
                },
            }
            for name in OPERATIONS
        ],
        **more,
    }
    return SchemathesisConfig.from_dict(config)


@pytest.fixture
def described(service, name):
    """Return the document of a real gunicorn, as schemathesis reads it, for the requests enumerated from it."""
    document = requests.get(f"{service.url}/openapi.json", timeout=PATIENCE).json()
    config = settings(name, "examples", "coverage", **{"base-url": service.url})
    return schemathesis.openapi.from_dict(document, config=config)


@pytest.fixture
def application(name):
    """Return the document of the application, for the requests generated at random, which need no server."""
    return schemathesis.openapi.from_wsgi("/openapi.json", create_app(Config()), config=settings(name, "fuzzing"))


@pytest.fixture(scope="module")
def bodies():
    """Have schemathesis send images, whole and damaged, where the document can only say bytes."""
    sides = st.integers(1, 80)
    for media_type in DOCUMENT["paths"]["/predict"]["post"]["requestBody"]["content"]:
        if media_type.startswith("image/"):
            pictures = st.builds(picture, st.just(media_type), sides, sides, st.integers(0, 2**32))
            damaged = st.builds(lambda content, share: content[: int(len(content) * share)], pictures, st.floats(0, 1))
            schemathesis.openapi.media_type(media_type, st.one_of(st.binary(), pictures, damaged))
    pixels = st.builds(pixels_of, st.integers(1, 3), st.integers(0, 2**32))
    schemathesis.openapi.media_type("application/octet-stream", st.one_of(st.binary(), pixels))


def pixels_of(count, seed):
    return np.random.default_rng(seed).integers(0, 256, 784 * count, np.uint8).tobytes()


def picture(media_type, width, height, seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    Image.fromarray(pixels).save(file, media_type.removeprefix("image/"))
    return file.getvalue()


def answers(description):
    """Return how often the operation answered which status, and what is wrong with which request's answer."""
    statuses, failures = Counter(), []
    for event in from_schema(description).execute():
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
def test_is_true_of_every_generated_request(described, application, name):
    enumerated, generated = answers(described), answers(application)
    failures = enumerated[1] + generated[1]
    assert not failures, f"{len(failures)} answers, the first of them:\n{failures[0]}"
    statuses = enumerated[0] + generated[0]
    assert statuses.keys() >= REACHED.get(name, {200, 405})
    assert enumerated[0].total() >= 1
    assert statuses.total() >= AT_LEAST.get(name, SOME)


def test_thousands_of_requests_are_generated():
    assert sum(AT_LEAST.get(name, SOME) for name in OPERATIONS) > 2_500


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """Return a service that asks for a key and takes at most 1,000 bytes."""
    log = tmp_path_factory.mktemp("keyed") / "log"
    service = Service(log, WEB_CONCURRENCY=1, API_KEY="key", MAX_BODY_BYTES=1_000)
    yield service
    service.end()


@pytest.mark.slow
@pytest.mark.xdist_group("keyed")
@pytest.mark.parametrize("name", ["predict", "v2Infer"])
@pytest.mark.parametrize("status", [401, 413])
def test_is_true_of_answers_that_no_generated_request_gets(described, keyed, name, status):
    method, path = OPERATIONS[name]
    headers = {"Content-Type": "application/octet-stream"} | ({} if status == 401 else {"Authorization": "Bearer key"})
    url = keyed.url + path.format(model="digits")
    answer = requests.post(url, bytes(1_001), headers=headers, timeout=PATIENCE)
    assert answer.status_code == status
    described[path][method].validate_response(answer)
    response = DOCUMENT["paths"][path]["post"]["responses"][str(status)]["$ref"].rpartition("/")[2]
    assert set(DOCUMENT["components"]["responses"][response]["headers"]) <= set(answer.headers)
