"""The Open Inference Protocol: NVIDIA's client asks a real gunicorn; bad requests are sent with Flask's test client."""

import json
import warnings

import numpy as np
import pytest

from serve.app import create_app
from serve.config import Config
from tests.serve.releases import make_release
from train.paths import RELEASE

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the client's own imports cause warnings
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
    from tritonclient.utils import InferenceServerException

INFER, HEADER_LENGTH = "/v2/models/digits/infer", "Inference-Header-Content-Length"
IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]}
VERSION = json.loads((RELEASE / "manifest.json").read_text())["onnx"]["sha256"][:12]


@pytest.fixture
def server(service):
    with InferenceServerClient(service.url.removeprefix("http://")) as server:
        yield server


def tensor(images, binary=True):
    return InferInput("image", images.shape, "UINT8").set_data_from_numpy(images, binary_data=binary)


def test_metadata(server):
    assert server.is_server_live()
    assert server.is_server_ready()
    for model, version, is_ready in (("digits", "", 1), ("digits", VERSION, 1), ("letters", "", 0), ("digits", "1", 0)):
        assert server.is_model_ready(model, version) == is_ready
    assert "binary_tensor_data" in server.get_server_metadata()["extensions"]
    metadata = server.get_model_metadata("digits", VERSION)
    assert metadata == server.get_model_metadata("digits")
    assert metadata["versions"] == [VERSION]


@pytest.mark.parametrize(
    ("count", "binary", "compression"),
    [(1000, True, None), (1000, False, None), (1, True, "gzip"), (1, False, "deflate")],
)
def test_inference(server, images, labels, count, binary, compression):
    sent = [tensor(images[:count], binary=binary)]
    result = server.infer("digits", sent, request_id=f"request {count}", request_compression_algorithm=compression)
    probabilities, found, doubt = map(result.as_numpy, ("probabilities", "digit", "doubt"))
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (count, 10))
    assert (found.dtype, found.shape) == (np.int64, (count,))
    assert (doubt.dtype, doubt.shape) == (np.float32, (count,))
    assert np.array_equal(probabilities.argmax(axis=1), found)
    assert (found == labels[:count]).mean() >= 0.99
    answer = result.get_response()
    assert (answer["id"], answer["model_version"]) == (f"request {count}", VERSION)


@pytest.mark.parametrize("binary_out", [{"digit", "probabilities", "doubt"}, {"digit"}, {}], ids=["all", "one", "none"])
@pytest.mark.parametrize("names", [["digit"], ["doubt"], ["digit", "probabilities"]])
def test_outputs_asked_for(server, images, names, binary_out):
    outputs = [InferRequestedOutput(name, binary_data=name in binary_out) for name in names]
    result = server.infer("digits", [tensor(images[:3])], outputs=outputs)
    answer = result.get_response()
    assert [output["name"] for output in answer["outputs"]] == names
    assert "id" not in answer
    for name in ("digit", "probabilities", "doubt"):
        assert (result.as_numpy(name) is not None) == (name in names)
    for name, digits in (("digit", lambda found: found), ("probabilities", lambda found: found.argmax(axis=1))):
        assert name not in names or digits(result.as_numpy(name)).tolist() == [7, 2, 1]


def test_doubt_is_the_graph_s():
    client = create_app(Config(), make_release(threshold=100)).test_client()
    sent = IMAGE | {"shape": [3, 28, 28], "data": np.repeat([0, 100, 255], 784).tolist()}
    answer = client.post(INFER, json={"inputs": [sent], "outputs": [{"name": "doubt"}]})
    assert answer.json["outputs"] == [{"name": "doubt", "datatype": "FP32", "shape": [3], "data": [0, 100, 255]}]


def test_null_is_the_same_as_absent_and_nested_data_as_flat(client, images):
    flat = IMAGE | {"data": images[0].reshape(-1).tolist(), "parameters": None}
    nulls = {"id": None, "parameters": None, "outputs": None, "inputs": [flat]}
    answer = client.post(INFER, json=nulls).json
    assert answer == client.post(INFER, json={"inputs": [IMAGE | {"data": images[:1].tolist()}]}).json
    assert answer["outputs"][1] == {"name": "digit", "datatype": "INT64", "shape": [1], "data": [7]}
    outputs = [{"name": "digit", "parameters": None}, {"name": "doubt", "parameters": {"binary_data": None}}]
    request = {"inputs": [flat], "outputs": outputs, "parameters": {"binary_data_output": None}}
    assert [output["name"] for output in client.post(INFER, json=request).json["outputs"]] == ["digit", "doubt"]
    outputs = [{"name": "digit", "parameters": {"binary_data": False}}]
    request = {"inputs": [flat], "outputs": outputs, "parameters": {"binary_data_output": True}}
    assert client.post(INFER, json=request).json["outputs"][0]["data"] == [7]


def test_json_with_a_byte_order_mark_before_binary_data(client, images):
    head = b"\xef\xbb\xbf" + request(data=None, parameters={"binary_data_size": 784})
    answer = client.post(INFER, data=head + images[0].tobytes(), headers={HEADER_LENGTH: str(len(head))})
    assert answer.json["outputs"][1]["data"] == [7]


def test_pixels_are_taken_as_they_are(server, images):
    """This protocol has no preprocessing: the graph gets exactly the tensor that was sent."""
    upright, inverted = (server.infer("digits", [tensor(sent)]) for sent in (images[:1], 255 - images[:1]))
    assert not np.allclose(inverted.as_numpy("probabilities"), upright.as_numpy("probabilities"))


def test_its_exceptions(server):
    with pytest.raises(InferenceServerException, match="expected the model digits, found 'letters'"):
        server.infer("letters", [tensor(np.zeros((1, 28, 28), np.uint8))])


def request(more=(), **fields):
    return json.dumps({"inputs": [IMAGE | fields], **dict(more)}).encode()


EXPECTED = "expected one input, 'image': UINT8 [N, 28, 28], found "
BAD_REQUESTS = [  # body, value of HEADER_LENGTH, part of the message
    (b"", None, "expected an inference request as JSON"),
    (b"[]", None, "Expected `object`, got `array`"),
    (b'{"inputs": []}', None, f"{EXPECTED}none"),
    (request(name="picture"), None, f"{EXPECTED}'picture': UINT8 [1, 28, 28]"),
    (request(datatype="FP32"), None, f"{EXPECTED}'image': FP32 [1, 28, 28]"),
    (request(shape=[1, 784]), None, f"{EXPECTED}'image': UINT8 [1, 784]"),
    (request(shape=[-1, 28, 28], data=[]), None, f"{EXPECTED}'image': UINT8 [-1, 28, 28]"),
    (request(shape=[], data=[]), None, f"{EXPECTED}'image': UINT8 []"),
    (json.dumps({"inputs": [IMAGE, IMAGE]}).encode(), None, "found 'image': UINT8 [1, 28, 28], 'image': "),
    (request(), None, "expected either data or binary_data_size, found neither"),
    (request(data=[1], parameters={"binary_data_size": 0}), None, "found both"),
    (request(data=[1, 2]), None, "expected 784 values for the shape, found 2"),
    (request(data=[[[1], [1, 2]]]), None, "expected 784 values for the shape, found 3"),
    (request(data=[256]), None, "<= 255"),
    (request(data=[1.5]), None, "Expected `int`, got `float`"),
    (request(parameters={"binary_data_size": 784}), None, "expected 0 as binary_data_size"),
    (request(data=[1]) + b"xx", len(request(data=[1])), "found None"),
    (request({"parameters": {"binary_data_output": 1}}), None, "Expected `bool | null`, got `int`"),
    (
        request({"outputs": [{"name": "logits"}]}),
        None,
        "expected outputs named probabilities or digit or doubt, found 'log",
    ),
    (
        request({"outputs": [{"name": "digit", "parameters": {"classification": 3}}]}),
        None,
        "extension is not supported",
    ),
    (b'{"inputs": [], "a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", None, "ecursion"),
    *(
        (b"{}", length, f"{HEADER_LENGTH}: expected 0 to 2, the body's size, found ")
        for length in (3, "9" * 5000, -1, "²")
    ),
]


@pytest.mark.parametrize(("body", "length", "message"), BAD_REQUESTS, ids=range(len(BAD_REQUESTS)))
def test_bad_requests(client, body, length, message):
    answer = client.post(INFER, data=body, headers={HEADER_LENGTH: str(length)} if length else {})
    assert (answer.status_code, list(answer.json)) == (400, ["error"]), answer.text
    assert message in answer.json["error"]


def test_other_statuses_answer_in_the_protocol_s_words(client):
    many = request(shape=[6, 28, 28], data=[0] * 784)
    for method, path, body, status, message in (
        ("POST", INFER, many, 413, "expected at most 5 images, found 6"),
        ("POST", "/v2/models/digits/versions/1/infer", b"", 404, f"expected version {VERSION} of digits, found '1'"),
        ("POST", INFER, request(name="x" * 50_000), 400, f"{EXPECTED}'xxx"),
        ("GET", "/v2/nowhere", b"", 404, "found GET /v2/nowhere"),
        ("POST", "/v2", b"", 405, "found POST /v2"),
    ):
        answer = client.open(path, method=method, data=body)
        assert (answer.status_code, list(answer.json)) == (status, ["error"])
        assert message in answer.json["error"]
        assert len(answer.data) < 2_000  # the message does not repeat all that was sent
