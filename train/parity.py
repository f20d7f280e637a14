"""Parity: an ONNX graph must predict as its PyTorch network on every test image.

Exporters have written graphs with wrong biases and 0 % accuracy, so only verified graphs are served.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx.external_data_helper import uses_external_data
from torch import Tensor

from model import contract
from train.errors import VerificationError
from train.predict import Outputs

TOLERANCE = 1e-4  # maximum difference of a probability
DOUBT_TOLERANCE = 1e-3  # maximum difference of the doubt, whose values are between about -20 and 20
BATCH_SIZES = (1, 7, 64, 10_000)
LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

OUTPUT_NAMES = [tensor.name for tensor in contract.OUTPUTS]


def compare(graph: bytes, images: Tensor, expected: Outputs) -> contract.Parity:
    """Compare the outputs of `graph` in ONNX Runtime with the outputs `expected`, of PyTorch, on all test `images`.

    For every batch size of BATCH_SIZES, with graph optimisation off and on, labels must be equal on every image,
    probabilities within TOLERANCE and doubts within DOUBT_TOLERANCE. Raises VerificationError with the images that
    differ, or if the graph does not run or breaks the contract.
    """
    differences = [_differences(expected, found, setting) for setting, found in _run(graph, images.cpu().numpy())]
    probability, doubt = map(max, zip(*differences, strict=True))
    return contract.Parity(len(images), 0, probability, doubt)


def _run(graph: bytes, images: NDArray[np.uint8]) -> Iterator[tuple[str, Outputs]]:
    """Run `graph` on `images` in every setting, and yield the setting in words and the outputs."""
    for level, optimisation in LEVELS.items():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = optimisation
        options.log_severity_level = 3
        with _graph_errors():
            session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            contract.check_graph(session)
            for size in BATCH_SIZES:
                batches = np.split(images, range(size, len(images), size))
                runs = [session.run(OUTPUT_NAMES, {contract.IMAGE.name: batch}) for batch in batches]
                outputs = tuple(map(np.concatenate, zip(*runs, strict=True)))
                yield f"at batch size {size}, optimisation {level}", outputs


def _differences(expected: Outputs, found: Outputs, setting: str) -> tuple[float, float]:
    """Return the largest differences of a probability and of a doubt. Raises VerificationError if too large."""
    probabilities, digits, _ = expected
    label = (found[1] != digits) | (found[0].argmax(axis=1) != digits)
    probability, doubt = np.abs(found[0] - probabilities).max(axis=1), np.abs(found[2] - expected[2])
    # Written so that NaN counts as wrong.
    wrong = label | ~(probability <= TOLERANCE) | ~(doubt <= DOUBT_TOLERANCE)
    if wrong.any():
        images = ", ".join(
            f"{i} (PyTorch {digits[i]} at {probabilities[i].max():.4f}, ONNX {found[1][i]} at {found[0][i].max():.4f})"
            for i in np.flatnonzero(wrong)[:5]
        )
        raise VerificationError(
            f"the ONNX graph does not predict as the network: {setting}, {wrong.sum()} of {len(digits)} test images "
            f"differ in label ({label.sum()}), by more than {TOLERANCE:g} in probability (at most "
            f"{probability.max():.3g}) or by more than {DOUBT_TOLERANCE:g} in doubt (at most {doubt.max():.3g}), "
            f"the first: {images}"
        )
    return float(probability.max()), float(doubt.max())


def load_graph(content: bytes) -> onnx.ModelProto:
    """Parse an ONNX graph. Raises VerificationError unless it is valid and one file; compare checks the contract."""
    with _graph_errors():
        graph = onnx.load_from_string(content)
        _check_one_file(graph)
        onnx.checker.check_model(content, full_check=True)
    return graph


@contextmanager
def _graph_errors() -> Iterator[None]:
    """Raise a VerificationError for any error about an ONNX graph."""
    try:
        yield
    except contract.ContractError as error:
        raise VerificationError(f"the ONNX graph: {error}") from error
    except Exception as error:  # each library has many exception types
        raise VerificationError(f"expected a valid ONNX graph, found: {error}") from error


def _check_one_file(message: Any) -> None:
    """Raise ContractError if any tensor in a protobuf `message` stores its data in another file."""
    if isinstance(message, onnx.TensorProto) and uses_external_data(message):
        raise contract.ContractError(f"expected all its data in one file, found {message.name!r} in another")
    for field, value in message.ListFields():
        if field.message_type:
            for part in [value] if hasattr(value, "ListFields") else value:
                _check_one_file(part)
