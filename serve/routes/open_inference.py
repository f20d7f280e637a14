"""The Open Inference Protocol (V2, REST) with its binary tensor data extension, for clients of KServe and Triton.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol/binary-tensor-data-extension
"""

import re
from codecs import BOM_UTF8
from typing import Annotated, Any

import msgspec
import numpy as np
from flask import Blueprint, Response, request
from msgspec import Meta, Raw, Struct
from numpy.typing import NDArray
from werkzeug.exceptions import BadRequest, NotFound

from model.contract import IMAGE, OUTPUTS, SIDE, TensorSpec
from model.version import VERSION
from serve.config import Config
from serve.predictor import Predictions, Predictor
from serve.release import Release
from serve.routes.body import read_body
from serve.routes.images import UNREADABLE, check_count, check_numbers
from serve.server import metrics
from serve.server.access_log import IMAGES_PREDICTED
from serve.server.api_key import public

SERVER, MODEL, PLATFORM, EXTENSION = "mnist-progression", "digits", "onnxruntime_onnx", "binary_tensor_data"
HEADER_LENGTH = "Inference-Header-Content-Length"
DATATYPES = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64"}  # from NumPy's names to the protocol's names
OUTPUT_NAMES = [tensor.name for tensor in OUTPUTS]

UInt8 = Annotated[int, Meta(ge=0, le=255)]


class Parameters(Struct):
    """The parameters that the service uses, in a request, an input or an output. Null means absent."""

    binary_data_size: int | None = None  # in an input: the number of bytes of its binary data
    binary_data: bool | None = None  # in an output: whether to send the output as binary data
    binary_data_output: bool | None = None  # in a request: the value for outputs without `binary_data`
    classification: Any = None  # in an output; not supported


class RequestInput(Struct):
    """The input tensor: images, white ink on black. It has either `data` or `parameters.binary_data_size`."""

    name: str
    datatype: str
    shape: list[int]
    data: Raw = Raw(b"null")  # as many pixels as the shape states, nested like the shape, or flat
    parameters: Parameters | None = None


class RequestOutput(Struct):
    """A requested output."""

    name: str
    parameters: Parameters | None = None


class InferenceRequest(Struct):
    """An inference request."""

    inputs: list[RequestInput]
    id: str | None = None
    outputs: list[RequestOutput] | None = None  # if absent, null or empty, all outputs are sent
    parameters: Parameters | None = None


_inference = msgspec.json.Decoder(InferenceRequest)
_pixels = msgspec.json.Decoder(list[UInt8])


def blueprint(config: Config, release: Release, predictor: Predictor) -> Blueprint:
    """Return the routes of /v2. The model's name is `digits`, its only version is the version of the release."""
    routes = Blueprint("inference", __name__, url_prefix="/v2")

    @routes.get("")
    def server_metadata() -> dict[str, Any]:
        return {"name": SERVER, "version": VERSION, "extensions": [EXTENSION]}

    @routes.get("/health/live")
    @public
    def server_live() -> dict[str, bool]:
        return {"live": True}

    @routes.get("/health/ready")
    @public
    def server_ready() -> dict[str, bool]:
        predictor.probe()
        return {"ready": True}

    @routes.get("/models/<model>")
    @routes.get("/models/<model>/versions/<version>")
    def model_metadata(model: str, version: str = release.version) -> dict[str, Any]:
        check(model, version)
        tensors = {"inputs": [_metadata(IMAGE)], "outputs": [_metadata(tensor) for tensor in OUTPUTS]}
        return {"name": MODEL, "versions": [release.version], "platform": PLATFORM, **tensors}

    @routes.get("/models/<model>/ready")
    @routes.get("/models/<model>/versions/<version>/ready")
    @public
    def model_ready(model: str, version: str = release.version) -> dict[str, Any]:
        check(model, version)
        predictor.probe()
        return {"name": MODEL, "ready": True}

    @routes.post("/models/<model>/infer")
    @routes.post("/models/<model>/versions/<version>/infer")
    def infer(model: str, version: str = release.version) -> Response:
        check(model, version)
        inference, binary = _parse(read_body(request), request.headers.get(HEADER_LENGTH), config)
        requested = _requested(inference)
        found = predictor.predict(_images(inference, binary, config))
        request.environ[IMAGES_PREDICTED] = len(found.digits)
        confidences = found.probabilities.max(axis=1).tolist()
        metrics.count_predictions(found.digits.tolist(), confidences, int(found.doubtful.sum()))
        outputs, parts = _outputs(found, requested)
        answer = {"model_name": MODEL, "model_version": release.version, "outputs": outputs}
        head = msgspec.json.encode(answer if inference.id is None else {**answer, "id": inference.id})
        if not parts:
            return Response(head, content_type="application/json")
        response = Response(b"".join((head, *parts)), content_type="application/octet-stream")
        response.headers[HEADER_LENGTH] = str(len(head))
        return response

    def check(model: str, version: str) -> None:
        if model != MODEL:
            raise NotFound(f"expected the model {MODEL}, found {model!r}")
        if version != release.version:
            raise NotFound(f"expected version {release.version} of {MODEL}, found {version!r}")

    return routes


def _metadata(tensor: TensorSpec) -> dict[str, Any]:
    """Return the protocol's metadata of a tensor. -1 stands for the number of images."""
    return {"name": tensor.name, "datatype": DATATYPES[tensor.dtype], "shape": [-1, *tensor.shape]}


def _parse(body: bytes, header_length: str | None, config: Config) -> tuple[InferenceRequest, bytes]:
    """Return the decoded JSON, the first `header_length` bytes of `body` (None: all), and the binary data after it."""
    size = len(body)
    if header_length is not None:
        if not re.fullmatch("[0-9]{1,10}", header_length) or int(header_length) > len(body):
            raise BadRequest(f"{HEADER_LENGTH}: expected 0 to {len(body)}, the body's size, found {header_length!r}")
        size = int(header_length)
    check_numbers(body[:size], config.max_batch)
    try:
        return _inference.decode(body[:size].removeprefix(BOM_UTF8)), body[size:]
    except UNREADABLE as error:
        raise BadRequest(f"expected an inference request as JSON, found: {error}") from error


def _requested(inference: InferenceRequest) -> dict[str, bool]:
    """Return the names of the requested outputs (by default all), and whether to send each output as binary data."""
    default = bool(inference.parameters and inference.parameters.binary_data_output)
    requested = {}
    for output in inference.outputs or map(RequestOutput, OUTPUT_NAMES):
        parameters = output.parameters or Parameters()
        if output.name not in OUTPUT_NAMES:
            raise BadRequest(f"expected outputs named {' or '.join(OUTPUT_NAMES)}, found {output.name!r}")
        if parameters.classification is not None:
            raise BadRequest(f"output {output.name!r}: the classification extension is not supported")
        requested[output.name] = default if parameters.binary_data is None else parameters.binary_data
    return requested


def _images(inference: InferenceRequest, binary: bytes, config: Config) -> NDArray[np.uint8]:
    """Return the input tensor, uint8 [N, 28, 28], without preprocessing."""
    found = [(tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in inference.inputs]
    if found != [(IMAGE.name, DATATYPES[IMAGE.dtype], list(IMAGE.shape))] or inference.inputs[0].shape[0] < 0:
        sent = ", ".join(f"{tensor.name!r}: {tensor.datatype} {tensor.shape}" for tensor in inference.inputs)
        raise BadRequest(f"expected one input, 'image': UINT8 [N, {SIDE}, {SIDE}], found {sent or 'none'}")
    (tensor,) = inference.inputs
    count = tensor.shape[0]
    check_count(count, config)
    pixels = _values(tensor, binary)
    if pixels.size != count * SIDE * SIDE:
        raise _invalid(f"expected {count * SIDE * SIDE} values for the shape, found {pixels.size}")
    return pixels.reshape(count, SIDE, SIDE)


def _values(tensor: RequestInput, binary: bytes) -> NDArray[np.uint8]:
    """Return a tensor's values, flat, uint8, from binary data or JSON. The caller checks the number of values."""
    size, data = tensor.parameters and tensor.parameters.binary_data_size, bytes(tensor.data)
    if (size is None) == (data == b"null"):
        raise _invalid(f"expected either data or binary_data_size, found {'neither' if size is None else 'both'}")
    if (size or 0) != len(binary):
        raise _invalid(f"expected {len(binary)} as binary_data_size, the number of bytes after the JSON, found {size}")
    if size is not None:
        return np.frombuffer(binary, np.uint8)
    try:  # the inner brackets are removed: decoding millions of empty lists would take seconds
        return np.array(_pixels.decode(b"[" + data.translate(None, b"[]") + b"]"), np.uint8)
    except UNREADABLE as error:
        raise _invalid(f"expected integers from 0 to 255, nested or flat, found: {error}") from error


def _invalid(detail: str) -> BadRequest:
    return BadRequest(f"input 'image': {detail}")


def _outputs(found: Predictions, requested: dict[str, bool]) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return the outputs for the response's JSON, and the bytes of each output that is sent as binary data."""
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, is_binary in requested.items():
        tensor: NDArray[Any] = found[OUTPUT_NAMES.index(name)]
        outputs.append({"name": name, "datatype": DATATYPES[tensor.dtype.name], "shape": tensor.shape})
        if is_binary:
            parts.append(tensor.tobytes())
            outputs[-1]["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            outputs[-1]["data"] = tensor.reshape(-1).tolist()
    return outputs, parts
