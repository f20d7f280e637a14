"""The Open Inference Protocol, asked by NVIDIA's own client of a real gunicorn, and its errors."""

import json
import warnings

import numpy as np
import pytest

from serve.app import create_app
from serve.config import Config
from tests.serve.releases import make_release
from train.paths import RELEASE

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own imports
    from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
    from tritonclient.utils import InferenceServerException

INFER = "/v2/models/digits/infer"
IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]}


VERSION = json.loads((RELEASE / "manifest.json").read_text())["onnx"]["sha256"][:12]


@pytest.fixture
def server(service):
    with InferenceServerClient(service.url.removeprefix("http://")) as server:
        yield server


def tensor(images, name="image", datatype="UINT8", binary=True):
    return InferInput(name, images.shape, datatype).set_data_from_numpy(images, binary_data=binary)


def test_metadata(server):
    assert server.is_server_live()
    assert server.is_server_ready()
    for model, version, is_ready in (("digits", "", 1), ("digits", VERSION, 1), ("letters", "", 0), ("digits", "1", 0)):
        assert server.is_model_ready(model, version) == is_ready
    assert "binary_tensor_data" in server.get_server_metadata()["extensions"]
    metadata = server.get_model_metadata("digits", VERSION)
    assert metadata == server.get_model_metadata("digits")
    assert metadata["versions"] == [VERSION]


@pytest.mark.parametrize("count", [1, 100, 1000])
@pytest.mark.parametrize("binary", [True, False])
def test_inference(server, images, labels, count, binary):
    result = server.infer("digits", [tensor(images[:count], binary=binary)], request_id=f"request {count}")
    probabilities, found, doubt = map(result.as_numpy, ("probabilities", "digit", "doubt"))
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (count, 10))
    assert (found.dtype, found.shape) == (np.int64, (count,))
    assert (doubt.dtype, doubt.shape) == (np.float32, (count,))
    assert np.array_equal(probabilities.argmax(axis=1), found)
    assert (found == labels[:count]).mean() >= 0.99
    answer = result.get_response()
    assert (answer["id"], answer["model_version"]) == (f"request {count}", VERSION)


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [{"digit", "probabilities", "doubt"}, {"digit"}, {}], ids=["all", "one", "none"])
@pytest.mark.parametrize("names", [["digit"], ["probabilities"], ["doubt"], ["digit", "probabilities"]])
def test_outputs_asked_for(server, images, names, binary_in, binary_out):
    outputs = [InferRequestedOutput(name, binary_data=name in binary_out) for name in names]
    result = server.infer("digits", [tensor(images[:3], binary=binary_in)], outputs=outputs)
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


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False])
def test_compressed_requests(server, images, compression, binary):
    sent = [tensor(images[:3], binary=binary)]
    result = server.infer("digits", sent, request_compression_algorithm=compression)
    assert result.as_numpy("digit").tolist() == [7, 2, 1]


def test_null_is_the_same_as_absent(client, images):
    image = IMAGE | {"data": images[:1].tolist()}
    nulls = {"id": None, "parameters": None, "outputs": None, "inputs": [image | {"parameters": None}]}
    assert client.post(INFER, json=nulls).json == client.post(INFER, json={"inputs": [image]}).json
    outputs = [{"name": "digit", "parameters": None}, {"name": "doubt", "parameters": {"binary_data": None}}]
    parameters = {"binary_data_output": None}
    answer = client.post(INFER, json={"inputs": [image], "outputs": outputs, "parameters": parameters})
    assert [output["name"] for output in answer.json["outputs"]] == ["digit", "doubt"]


def test_json_with_a_byte_order_mark_before_binary_data(client, images):
    image = IMAGE | {"data": None, "parameters": {"binary_data_size": 784}}
    head = b"\xef\xbb\xbf" + json.dumps({"inputs": [image]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = client.post(INFER, data=head + images[0].tobytes(), headers=headers)
    assert answer.json["outputs"][1]["data"] == [7]


def test_pixels_are_taken_as_they_are(server, images):
    """No preprocessing here: a tensor is what the graph gets."""
    upright, inverted = (server.infer("digits", [tensor(sent)]) for sent in (images[:1], 255 - images[:1]))
    assert not np.allclose(inverted.as_numpy("probabilities"), upright.as_numpy("probabilities"))


TWO = np.zeros((2, 28, 28), np.uint8)
EXPECTED = r"expected one input, 'image': UINT8 \[N, 28, 28\], found "


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"inputs": [tensor(TWO, name="picture")]}, rf"{EXPECTED}'picture': UINT8 \[2, 28, 28\]"),
        ({"inputs": [tensor(TWO), tensor(TWO)]}, "found 'image': .*, 'image': "),
        ({"inputs": [tensor(TWO.reshape(2, 784))]}, rf"{EXPECTED}'image': UINT8 \[2, 784\]"),
        ({"inputs": [tensor(TWO.astype(np.float32), datatype="FP32")]}, f"{EXPECTED}'image': FP32 "),
        ({"model_name": "letters"}, "expected the model digits, found 'letters'"),
        ({"model_version": "1"}, "expected version [0-9a-f]{12} of digits, found '1'"),
        ({"outputs": [InferRequestedOutput("logits")]}, "expected outputs named .*doubt, found 'logits'"),
        ({"outputs": [InferRequestedOutput("digit", class_count=3)]}, "classification extension is not supported"),
        ({"inputs": [tensor(np.zeros((1001, 28, 28), np.uint8))]}, "expected at most 1000 images, found 1001"),
    ],
)
def test_its_exceptions(server, sent, message):
    with pytest.raises(InferenceServerException, match=message):
        server.infer(**{"model_name": "digits", "inputs": [tensor(TWO)], **sent})


def inputs(**fields):
    """Return a request with one tensor that has these fields."""
    return json.dumps({"inputs": [IMAGE | fields]}).encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "expected an inference request as JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"inputs": []}', "expected one input, 'image': UINT8 [N, 28, 28], found none"),
        (inputs(), "expected either data or binary_data_size, found neither"),
        (inputs(data=[1, 2]), "expected 784 values for its shape, found 2"),
        (inputs(data=[256]), "<= 255"),
        (inputs(data=[1.5]), "Expected `int`, got `float`"),
        (inputs(data=[[[1], [1, 2]]]), "expected 784 values for its shape, found 3"),
        (inputs(shape=[-1, 28, 28], data=[]), "expected one input, 'image': UINT8 [N, 28, 28], found"),
        (inputs(shape=[], data=[]), "expected one input, 'image': UINT8 [N, 28, 28], found"),
        (inputs(parameters={"binary_data_size": 784}), "expected 0 as binary_data_size"),
        (inputs(data=[1], parameters={"binary_data_size": 0}), "found both"),
        (b'{"inputs": [], "parameters": {"binary_data_output": 1}}', "Expected `bool | null`, got `int`"),
        pytest.param(b'{"inputs": [], "a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "ecursion", id="deep"),
    ],
)
def test_requests_of_another_form(client, body, message):
    answer = client.post(INFER, data=body)
    assert (answer.status_code, list(answer.json)) == (400, ["error"]), answer.text
    assert message in answer.json["error"]


@pytest.mark.parametrize("length", ["3", "9" * 5000, "-1", "²"])
def test_the_length_of_the_json_is_within_the_body(client, length):
    answer = client.post(INFER, data=b"{}", headers={"Inference-Header-Content-Length": length})
    expected = "Inference-Header-Content-Length: expected 0 to 2, the body's bytes, found "
    assert (answer.status_code, answer.json["error"][: len(expected)]) == (400, expected)


def test_binary_data_that_no_tensor_has_is_refused(client):
    head = inputs(data=[1])
    answer = client.post(INFER, data=head + b"xx", headers={"Inference-Header-Content-Length": str(len(head))})
    assert (answer.status_code, answer.json["error"][-10:]) == (400, "found None")


def test_what_was_sent_is_not_sent_back_whole(client):
    answer = client.post(INFER, json={"inputs": [IMAGE | {"name": "x" * 50_000}]})
    assert answer.status_code == 400
    assert len(answer.data) < 2_000


def test_nested_data_is_the_same_as_flat(client, images):
    answers = [
        client.post(INFER, json={"inputs": [IMAGE | {"data": data}]}).json
        for data in (images[:1].tolist(), images[0].reshape(-1).tolist())
    ]
    assert answers[0] == answers[1]
    assert answers[0]["outputs"][1] == {"name": "digit", "datatype": "INT64", "shape": [1], "data": [7]}


def test_paths_and_methods_answer_in_the_protocol_s_words(client):
    for method, path, status in (("get", "/v2/nowhere", 404), ("get", INFER, 405), ("post", "/v2", 405)):
        answer = getattr(client, method)(path)
        assert (answer.status_code, list(answer.json)) == (status, ["error"])
