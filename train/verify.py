"""The proof that an ONNX file predicts as the network that was trained, on every image of the test set.

Exporters have shipped graphs with wrong biases and an accuracy of 0 %: nothing is served that has not passed here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.classifier import DigitClassifier
from model.networks import NETWORKS, parameter_count
from train.data import Data, Split
from train.errors import VerificationError
from train.files import read_bytes, read_json, sha256

GRAPH, WEIGHTS, MANIFEST = "digits.onnx", "model.safetensors", "manifest.json"
TOLERANCE = 1e-4  # the largest difference allowed of any probability
BATCH_SIZES = (1, 7, 64, 10_000)
LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
# The contract: name, ONNX type, shape; "batch" is dynamic.
INPUTS = [("image", "tensor(uint8)", ["batch", 28, 28])]
OUTPUTS = [("probabilities", "tensor(float)", ["batch", 10]), ("digit", "tensor(int64)", ["batch"])]


@dataclass(frozen=True)
class Parity:
    """How an ONNX graph compares with its PyTorch network on `images` images."""

    images: int
    label_mismatches: int
    max_abs_probability_difference: float
    correct: int  # images whose label both get right


@dataclass(frozen=True)
class Export:
    """A verified export: its files by name, as they were when verified, and what the verification found."""

    manifest: dict[str, Any]
    files: dict[str, bytes]
    parity: Parity


def verify(folder: Path, data: Data) -> Export:
    """Check the export in `folder` against its manifest, and its graph against its weights on `data`'s test set.

    What the manifest says of the test set is checked where `data` is the set it was made with. Raises
    VerificationError, or TrainError where a file cannot be read, saying what was expected and found.
    """
    path = folder / MANIFEST
    manifest = read_json(path)
    with _reading(path):
        network = NETWORKS[manifest["model"]]()
        same_data = manifest["data"]["sha256"] == data.sha256
    files = {GRAPH: read_bytes(folder / GRAPH), WEIGHTS: read_bytes(folder / WEIGHTS)}
    _check_stated(path, manifest, file_facts(files))
    load_weights(network, files[WEIGHTS], folder)
    _check_stated(path, manifest, {"parameters": parameter_count(network)})
    parity = compare(files[GRAPH], network, data.test)
    if same_data:
        _check_stated(path, manifest, test_facts(parity))
    return Export(manifest, files, parity)


def file_facts(files: dict[str, bytes]) -> dict[str, Any]:
    """Return what a manifest says of an export's files."""
    graph, weights = files[GRAPH], files[WEIGHTS]
    return {
        "onnx": {"file": GRAPH, "sha256": sha256(graph), "bytes": len(graph)},
        "weights": {"file": WEIGHTS, "sha256": sha256(weights), "bytes": len(weights)},
    }


def test_facts(parity: Parity) -> dict[str, Any]:
    """Return what a manifest says of the test set."""
    return {
        "test_accuracy": parity.correct / parity.images,
        "test_correct": parity.correct,
        "test_total": parity.images,
    }


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what looking into a manifest of another form raises into a VerificationError."""
    try:
        yield
    except (KeyError, TypeError) as error:
        raise VerificationError(f"{path}: expected a manifest, found none or unknown: {error}") from error


def _check_stated(path: Path, stated: Any, found: dict[str, Any], within: str = "") -> None:
    for name, value in found.items():
        with _reading(path):
            other = stated[name]
        if isinstance(value, dict):
            _check_stated(path, other, value, f"{within}{name}.")
        elif other != value:
            raise VerificationError(f"{path}: expected {within}{name} as stated, {other}, found {value}")


def predict(network: nn.Module, images: Tensor) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return PyTorch's probabilities [N, 10] and digits [N] for uint8 [N, 28, 28] `images`, computed on the CPU."""
    classifier = DigitClassifier(network).cpu().eval()
    with torch.inference_mode():
        probabilities, digits = zip(*(classifier(batch) for batch in images.cpu().split(1_000)), strict=True)
    return torch.cat(probabilities).numpy(), torch.cat(digits).numpy()


def load_weights(network: nn.Module, content: bytes, source: Path) -> None:
    """Load the safetensors `content` into `network`. Raises VerificationError where they do not fit it."""
    try:
        network.load_state_dict(safetensors.torch.load(content))
    except (safetensors.SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise VerificationError(f"{source}: the weights are not those of {type(network).__name__}: {reason}") from error


def compare(graph: bytes, network: nn.Module, test: Split) -> Parity:
    """Run every image of `test` through `network` in PyTorch and `graph` in ONNX Runtime, and compare.

    At every batch size of BATCH_SIZES and with the runtime's graph optimisation off and on, labels must be equal on
    every image and probabilities within TOLERANCE. Raises VerificationError, naming the images that differ.
    """
    _check_graph(graph)
    probabilities, digits = predict(network, test.images)
    images, largest = test.images.cpu().numpy(), 0.0
    for level, optimisation in LEVELS.items():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = optimisation
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for size in BATCH_SIZES:
            runs = [session.run(None, {"image": images[i : i + size]}) for i in range(0, len(images), size)]
            found_probabilities, found_digits = (np.concatenate(parts) for parts in zip(*runs, strict=True))
            difference = np.abs(found_probabilities - probabilities).max(axis=1)
            same = (found_digits == digits) & (found_probabilities.argmax(axis=1) == digits)
            wrong = np.flatnonzero(~(same & (difference <= TOLERANCE)))  # so written, NaN is wrong too
            if wrong.size:
                named = ", ".join(
                    f"{i} (PyTorch {digits[i]} at {probabilities[i].max():.4f}, "
                    f"ONNX {found_digits[i]} at {found_probabilities[i].max():.4f})"
                    for i in wrong[:5]
                )
                raise VerificationError(
                    f"the ONNX graph does not predict as the network: at batch {size}, optimisation {level}, "
                    f"{len(wrong)} of {len(images)} test images differ in label ({int((~same).sum())}) or by more than "
                    f"{TOLERANCE:g} in probability (by {difference.max():.3g} at most): "
                    f"{named}{', …' if len(wrong) > 5 else ''}"
                )
            largest = max(largest, float(difference.max()))
    correct = int((digits == test.labels.cpu().numpy()).sum())
    return Parity(len(images), 0, largest, correct)


def _check_graph(graph: bytes) -> None:
    """Check that `graph` is valid ONNX, in one piece, with the contract's inputs and outputs."""
    try:
        onnx.checker.check_model(graph, full_check=True)
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    except Exception as error:  # each library has many of its own
        reason = " ".join(str(error).split())
        raise VerificationError(f"expected a valid ONNX graph, found: {reason}") from error
    for part, expected, values in (
        ("inputs", INPUTS, session.get_inputs()),
        ("outputs", OUTPUTS, session.get_outputs()),
    ):
        found = [(value.name, value.type, value.shape) for value in values]
        if found != expected:
            raise VerificationError(f"the ONNX graph: expected {part} {expected}, found {found}")
