"""The Open Inference Protocol (V2, REST) with its binary tensor data extension, for KServe, Triton, MLServer clients.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol/binary-tensor-data-extension
"""

import re
from typing import Annotated, Any

import msgspec
import numpy as np
from flask import Blueprint, Response, request
from numpy.typing import NDArray
from werkzeug.exceptions import BadRequest, NotFound

from model.contract import IMAGE, SIDE, TensorSpec
from serve import observe
from serve.access import public
from serve.bodies import UNREADABLE, check_count, check_numbers, read_body
from serve.config import Config
from serve.predictor import Predictor
from serve.release import Release

MODEL = "digits"
HEADER_LENGTH = "Inference-Header-Content-Length"
DATATYPES = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64"}  # NumPy's name: the protocol's


def _metadata(tensor: TensorSpec) -> dict[str, Any]:
    """Return a tensor's description in the protocol's terms."""
    return {"name": tensor.name, "datatype": DATATYPES[tensor.dtype], "shape": [-1, *tensor.shape]}


INPUT = _metadata(IMAGE)

Parameters = dict[str, Any]
UInt8 = Annotated[int, msgspec.Meta(ge=0, le=255)]


class Input(msgspec.Struct):
    """An input tensor, its data in the JSON or as binary data after it."""

    name: str
    datatype: str
    shape: list[int]
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: Parameters = {}


class RequestedOutput(msgspec.Struct):
    """A requested output."""

    name: str
    parameters: Parameters = {}


class Inference(msgspec.Struct):
    """An inference request."""

    inputs: list[Input]
    id: str | None = None
    outputs: list[RequestedOutput] = []
    parameters: Parameters = {}


_inference = msgspec.json.Decoder(Inference)
_flat = msgspec.json.Decoder(list[UInt8])
_items = msgspec.json.Decoder(list[msgspec.Raw])
_rows = msgspec.json.Decoder(list[list[UInt8]])


def blueprint(config: Config, release: Release, predictor: Predictor) -> Blueprint:
    """Return the routes of /v2. The model's name is `digits`, its only version is the release's."""
    routes = Blueprint("inference", __name__, url_prefix="/v2")
    encoder = msgspec.json.Encoder()
    output_names = [tensor.name for tensor in predictor.outputs]

    @routes.get("")
    def server_metadata() -> dict[str, Any]:
        return {"name": "mnist-progression", "version": release.version, "extensions": ["binary_tensor_data"]}

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
        return {
            "name": MODEL,
            "versions": [release.version],
            "platform": "onnxruntime_onnx",
            "inputs": [INPUT],
            "outputs": [_metadata(tensor) for tensor in predictor.outputs],
        }

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
        requested = _requested(inference, output_names)
        images = _images(inference, binary, config)
        found = predictor.predict(images)
        doubtful = 0 if found.doubtful is None else int(found.doubtful.sum())
        observe.count_predictions(request, found.digits.tolist(), found.probabilities.max(axis=1).tolist(), doubtful)
        tensors = {"probabilities": found.probabilities, "digit": found.digits, "doubt": found.doubts}
        outputs, parts = _outputs(tensors, requested)
        answer: dict[str, Any] = {"model_name": MODEL, "model_version": release.version, "outputs": outputs}
        if inference.id is not None:
            answer["id"] = inference.id
        head = encoder.encode(answer)
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


def _parse(body: bytes, header_length: str | None, config: Config) -> tuple[Inference, bytes]:
    """Return the decoded JSON request, and the binary data after it."""
    size = len(body)
    if header_length is not None:
        if not re.fullmatch("[0-9]{1,10}", header_length) or int(header_length) > len(body):
            raise BadRequest(f"{HEADER_LENGTH}: expected 0 to {len(body)}, the body's bytes, found {header_length!r}")
        size = int(header_length)
    check_numbers(body[:size], config.max_batch)
    try:
        return _inference.decode(body[:size]), body[size:]
    except UNREADABLE as error:
        raise BadRequest(f"expected an inference request as JSON, found: {error}") from error


def _requested(inference: Inference, output_names: list[str]) -> dict[str, bool]:
    """Return the requested outputs, by default all of `output_names`, each with whether to send it as binary data."""
    default = _flag(inference.parameters, "binary_data_output", False)
    if not inference.outputs:
        return dict.fromkeys(output_names, default)
    names = {}
    for output in inference.outputs:
        if output.name not in output_names:
            raise BadRequest(f"expected outputs named {' or '.join(output_names)}, found {output.name!r}")
        if "classification" in output.parameters:
            raise BadRequest(f"output {output.name!r}: the classification extension is not supported")
        names[output.name] = _flag(output.parameters, "binary_data", default)
    return names


def _flag(parameters: Parameters, name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequest(f"{name}: expected true or false, found {value!r}")
    return value


def _images(inference: Inference, binary: bytes, config: Config) -> NDArray[np.uint8]:
    """Return the input tensor, uint8 [N, 28, 28], exactly as sent."""
    if [tensor.name for tensor in inference.inputs] != [INPUT["name"]]:
        found = ", ".join(repr(tensor.name) for tensor in inference.inputs) or "none"
        raise BadRequest(f"expected one input, 'image', found {found}")
    (tensor,) = inference.inputs
    if tensor.datatype != INPUT["datatype"]:
        raise BadRequest(f"input 'image': expected datatype UINT8, found {tensor.datatype!r}")
    if len(tensor.shape) != 3 or tensor.shape[0] < 0 or tensor.shape[1:] != [SIDE, SIDE]:
        raise BadRequest(f"input 'image': expected shape [N, {SIDE}, {SIDE}], found {tensor.shape}")
    count = tensor.shape[0]
    check_count(count, config)
    pixels = _pixels(tensor, binary, count)
    if pixels.size != count * SIDE * SIDE:
        raise BadRequest(f"input 'image': expected {count * SIDE * SIDE} values for its shape, found {pixels.size}")
    return pixels.reshape(count, SIDE, SIDE)


def _pixels(tensor: Input, binary: bytes, count: int) -> NDArray[np.uint8]:
    """Return a tensor's values: from binary data, or from JSON, nested according to its shape or flat."""
    size = tensor.parameters.get("binary_data_size")
    if size is not None:
        if tensor.data is not msgspec.UNSET:
            raise BadRequest("input 'image': expected data or binary_data_size, found both")
        if size != len(binary) or isinstance(size, bool):
            raise BadRequest(
                f"input 'image': expected {len(binary)} as binary_data_size, the bytes sent, found {size!r}"
            )
        return np.frombuffer(binary, np.uint8)
    if not isinstance(tensor.data, msgspec.Raw):
        raise BadRequest("input 'image': expected data, or binary_data_size and binary data, found neither")
    if binary:
        raise BadRequest(
            f"input 'image': expected binary_data_size for the {len(binary)} bytes after the JSON, found none"
        )
    data = bytes(tensor.data)
    try:
        if not data[1:].lstrip().startswith(b"["):
            return np.array(_flat.decode(data), np.uint8)
        items = _items.decode(data)
        if len(items) != count:
            raise BadRequest(f"input 'image': expected data of {count} images, as its shape says, found {len(items)}")
        images = np.empty((count, SIDE, SIDE), np.uint8)
        for image, item in zip(images, items, strict=True):
            check_numbers(bytes(item), 1)
            rows = _rows.decode(item)
            if {len(rows), *map(len, rows)} != {SIDE}:
                raise BadRequest(
                    f"input 'image': expected data flat or nested as [N, {SIDE}, {SIDE}], found other rows"
                )
            image[:] = rows
    except UNREADABLE as error:
        raise BadRequest(
            f"input 'image': expected numbers 0–255 of its shape, nested or flat, found: {error}"
        ) from error
    return images


def _outputs(tensors: dict[str, Any], requested: dict[str, bool]) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return the response's outputs, and the binary data of those that are sent as binary data."""
    outputs, parts = [], []
    for name, is_binary in requested.items():
        tensor = tensors[name]
        output: dict[str, Any] = {"name": name, "datatype": DATATYPES[tensor.dtype.name], "shape": list(tensor.shape)}
        if is_binary:
            parts.append(tensor.tobytes())
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            output["data"] = tensor.reshape(-1).tolist()
        outputs.append(output)
    return outputs, parts
