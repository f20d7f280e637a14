"""The Open Inference Protocol, asked by NVIDIA's own client of a real gunicorn, and its errors."""

import gzip
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
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

INFER = "/v2/models/digits/infer"
IMAGE = {"name": "image", "datatype": "UINT8", "shape": [1, 28, 28]}


@pytest.fixture(scope="module")
def version():
    return json.loads((RELEASE / "manifest.json").read_text())["onnx"]["sha256"][:12]


@pytest.fixture
def server(service):
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as server:
        yield server


def tensor(images, name="image", datatype="UINT8", binary=True):
    sent = triton.InferInput(name, images.shape, datatype)
    return sent.set_data_from_numpy(images, binary_data=binary)


def test_metadata(server, version):
    assert server.is_server_live()
    assert server.is_server_ready()
    assert server.is_model_ready("digits")
    assert server.is_model_ready("digits", version)
    assert not server.is_model_ready("letters")
    assert not server.is_model_ready("digits", "1")
    assert "binary_tensor_data" in server.get_server_metadata()["extensions"]
    assert server.get_model_metadata("digits", version) == {
        "name": "digits",
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28]}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
            {"name": "digit", "datatype": "INT64", "shape": [-1]},
            {"name": "doubt", "datatype": "FP32", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize("count", [1, 100, 1000])
@pytest.mark.parametrize("binary", [True, False])
def test_inference(server, images, labels, version, count, binary):
    result = server.infer("digits", [tensor(images[:count], binary=binary)], request_id=f"request {count}")
    probabilities, found = result.as_numpy("probabilities"), result.as_numpy("digit")
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (count, 10))
    assert (found.dtype, found.shape) == (np.int64, (count,))
    doubt = result.as_numpy("doubt")
    assert (doubt.dtype, doubt.shape) == (np.float32, (count,))
    assert np.array_equal(probabilities.argmax(axis=1), found)
    assert (found == labels[:count]).mean() >= 0.99
    assert result.get_response()["id"] == f"request {count}"
    assert result.get_response()["model_version"] == version


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("names", [["digit"], ["probabilities"], ["doubt"], ["digit", "probabilities"]])
def test_outputs_asked_for(server, images, names, binary_in, binary_out):
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]
    result = server.infer("digits", [tensor(images[:3], binary=binary_in)], outputs=outputs)
    answer = result.get_response()
    assert [output["name"] for output in answer["outputs"]] == names
    assert "id" not in answer
    for name in ("digit", "probabilities", "doubt"):
        assert (result.as_numpy(name) is not None) == (name in names)
    if "digit" in names:
        assert result.as_numpy("digit").tolist() == [7, 2, 1]


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


def test_bad_content_encodings(client):
    answer = client.post(INFER, data=b"x", headers={"Content-Encoding": "br"})
    assert answer.json == {"error": "expected a Content-Encoding of gzip, deflate or identity, found br"}
    bomb = client.post(INFER, data=gzip.compress(bytes(2**20)), headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, bomb.status_code) == (415, 413)


def test_null_is_the_same_as_absent(client, images):
    plain = {"inputs": [IMAGE | {"data": images[:1].tolist()}]}
    nulls = {
        "id": None,
        "parameters": None,
        "outputs": None,
        "inputs": [IMAGE | {"data": images[:1].tolist(), "parameters": None}],
    }
    assert client.post(INFER, json=nulls).json == client.post(INFER, json=plain).json
    outputs = [{"name": "digit", "parameters": None}, {"name": "doubt", "parameters": {"binary_data": None}}]
    answer = client.post(INFER, json=plain | {"outputs": outputs, "parameters": {"binary_data_output": None}})
    assert [output["name"] for output in answer.json["outputs"]] == ["digit", "doubt"]


def test_json_with_a_byte_order_mark_before_binary_data(client, images):
    head = (
        b"\xef\xbb\xbf"
        + json.dumps({"inputs": [IMAGE | {"data": None, "parameters": {"binary_data_size": 784}}]}).encode()
    )
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = client.post(INFER, data=head + images[0].tobytes(), headers=headers)
    assert answer.json["outputs"][1]["data"] == [7]


def test_one_output_in_json_and_one_in_binary(server, images):
    outputs = [
        triton.InferRequestedOutput("probabilities", binary_data=False),
        triton.InferRequestedOutput("digit", binary_data=True),
    ]
    result = server.infer("digits", [tensor(images[:2])], outputs=outputs)
    assert result.as_numpy("probabilities").argmax(axis=1).tolist() == result.as_numpy("digit").tolist() == [7, 2]


def test_pixels_are_taken_as_they_are(server, images):
    """No preprocessing here: a tensor is what the graph gets."""
    inverted = 255 - images[:1]
    via_predict = server.infer("digits", [tensor(inverted)]).as_numpy("probabilities")
    assert not np.allclose(via_predict, server.infer("digits", [tensor(images[:1])]).as_numpy("probabilities"))


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (lambda images: {"inputs": [tensor(images, name="picture")]}, "expected one input, 'image', found 'picture'"),
        (lambda images: {"inputs": [tensor(images), tensor(images)]}, "found 'image', 'image'"),
        (
            lambda images: {"inputs": [tensor(images.reshape(-1, 784))]},
            r"expected shape \[N, 28, 28\], found \[2, 784\]",
        ),
        (
            lambda images: {"inputs": [tensor(images.astype(np.float32), datatype="FP32")]},
            "expected datatype UINT8, found 'FP32'",
        ),
        (
            lambda images: {"inputs": [tensor(images)], "model_name": "letters"},
            "expected the model digits, found 'letters'",
        ),
        (
            lambda images: {"inputs": [tensor(images)], "model_version": "1"},
            "expected version [0-9a-f]{12} of digits, found '1'",
        ),
        (
            lambda images: {"inputs": [tensor(images)], "outputs": [triton.InferRequestedOutput("logits")]},
            "expected outputs named probabilities or digit or doubt, found 'logits'",
        ),
        (
            lambda images: {
                "inputs": [tensor(images)],
                "outputs": [triton.InferRequestedOutput("digit", class_count=3)],
            },
            "the classification extension is not supported",
        ),
        (
            lambda images: {"inputs": [tensor(np.zeros((0, 28, 28), np.uint8))]},
            "expected at least one image, found none",
        ),
        (
            lambda images: {"inputs": [tensor(np.zeros((1001, 28, 28), np.uint8))]},
            "expected at most 1000 images, found 1001",
        ),
    ],
)
def test_its_exceptions(server, images, sent, message):
    with pytest.raises(InferenceServerException, match=message):
        server.infer(**{"model_name": "digits", **sent(images[:2])})


@pytest.mark.parametrize(
    ("content", "header", "message"),
    [
        (b"", None, "expected an inference request as JSON"),
        (b"\xff", None, "expected an inference request as JSON"),
        (b"[]", None, "Expected `object`, got `array`"),
        (b'{"inputs": 1}', None, "Expected `array`, got `int`"),
        (b'{"inputs": []}', None, "expected one input, 'image', found none"),
        ({"inputs": [IMAGE]}, None, "expected data, or binary_data_size and binary data, found neither"),
        ({"inputs": [IMAGE | {"data": [1, 2]}]}, None, "expected 784 values for its shape, found 2"),
        ({"inputs": [IMAGE | {"data": [256]}]}, None, "<= 255"),
        ({"inputs": [IMAGE | {"data": [1.5]}]}, None, "Expected `int`, got `float`"),
        (
            {"inputs": [IMAGE | {"data": [[[1], [1, 2]]]}]},
            None,
            "expected data flat or nested as [N, 28, 28]",
        ),
        ({"inputs": [IMAGE | {"data": "x"}]}, None, "Expected `array`, got `str`"),
        ({"inputs": [IMAGE | {"shape": [-1, 28, 28], "data": []}]}, None, "expected shape"),
        ({"inputs": [IMAGE | {"parameters": {"binary_data_size": 784}}]}, None, "expected 0 as binary_data_size"),
        ({"inputs": [IMAGE | {"parameters": {"binary_data_size": True}}]}, None, "binary_data_size"),
        ({"inputs": [IMAGE | {"data": [1], "parameters": {"binary_data_size": 0}}]}, None, "found both"),
        (
            {"inputs": [IMAGE], "parameters": {"binary_data_output": 1}},
            None,
            "binary_data_output: expected true or false",
        ),
        (b"{}", "3", "Inference-Header-Content-Length: expected 0 to 2, the body's bytes, found '3'"),
        pytest.param(
            b'{"inputs": [], "parameters": {"a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}}", None, "ecursion", id="deep"
        ),
        (b"{}", "9" * 5000, "Inference-Header-Content-Length: expected 0 to 2"),
        (b"{}", "-1", "Inference-Header-Content-Length: expected 0 to 2"),
        (b"{}", "²", "Inference-Header-Content-Length: expected 0 to 2"),
        (
            b'{"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [1]}]}xx',
            "87",
            "found none",
        ),
    ],
)
def test_requests_of_another_form(client, content, header, message):
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    answer = client.post(INFER, data=body, headers={"Inference-Header-Content-Length": header} if header else {})
    assert (answer.status_code, list(answer.json)) == (400, ["error"]), answer.text
    assert message in answer.json["error"]


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
