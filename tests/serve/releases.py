"""Releases for tests. Their graphs have the inputs and outputs of the contract, but contain no network."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from model.contract import Doubt
from serve.release import Release, read
from train.paths import RELEASE


def make_graph(*, doubt: bool = True, pixels: int = 784, name: str = "image") -> bytes:
    """Return a graph that predicts 0 with a confidence of 0.1 for every image; the doubt is the mean of the pixels.

    Without the output `doubt`, or with another `name` for its input, the graph breaks the contract. With another number
    of `pixels`, the graph can be loaded, but not run.
    """
    info, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    image = info(name, TensorProto.UINT8, ["batch", 28, 28])
    outputs = [info("probabilities", TensorProto.FLOAT, ["batch", 10]), info("digit", TensorProto.INT64, ["batch"])]
    nodes = [
        node("Cast", [name], ["float"], to=TensorProto.FLOAT),
        node("Reshape", ["float", "shape"], ["flat"]),
        node("MatMul", ["flat", "zeros"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"]),
        node("ArgMax", ["logits"], ["digit"], axis=1, keepdims=0),
    ]
    constants = {"zeros": np.zeros((pixels, 10), np.float32), "shape": np.array([-1, pixels])}
    if doubt:
        outputs.append(info("doubt", TensorProto.FLOAT, ["batch"]))
        nodes.append(node("ReduceMean", ["flat", "axis"], ["doubt"], keepdims=0))
        constants["axis"] = np.array([1])
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = onnx.helper.make_graph(nodes, "made", [image], outputs, initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def make_release(threshold: float) -> Release:
    """Return a release with the graph of make_graph. An image is doubtful if its doubt is above `threshold`."""
    graph = make_graph()
    shipped = read(RELEASE).manifest
    onnx_file = replace(shipped.onnx, sha256=hashlib.sha256(graph).hexdigest(), bytes=len(graph))
    return Release(replace(shipped, onnx=onnx_file, doubt=Doubt(0, threshold, 0.01, 0.01, {})), graph)


def put_graph(folder: Path, graph: bytes) -> None:
    """Replace the graph of the release in `folder`, and its hash in the manifest, by renaming new files."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["onnx"]["sha256"] = hashlib.sha256(graph).hexdigest()
    for name, content in (("digits.onnx", graph), ("manifest.json", json.dumps(manifest).encode())):
        (folder / f".{name}").write_bytes(content)
        (folder / f".{name}").rename(folder / name)
