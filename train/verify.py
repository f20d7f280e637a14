"""Verify an export: its files match its manifest, and its graph predicts as its network on every test image.

Exporters have written graphs with wrong biases and 0 % accuracy, so only verified graphs are served.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
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

from model import contract
from model.classifier import DigitClassifier, DoubtHead
from train import TrainError
from train.data import Data, Split, load
from train.files import read_bytes, sha256
from train.progression import PROGRESSION

TOLERANCE = 1e-4  # maximum difference of a probability
DOUBT_TOLERANCE = 1e-3  # maximum difference of the doubt, whose values are between about -20 and 20
BATCH_SIZES = (1, 7, 64, 10_000)
LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
OUTPUT_NAMES = [tensor.name for tensor in contract.OUTPUTS]
NETWORK = "network."  # DigitClassifier's prefix of the network's weights, which the file leaves out

Outputs = tuple[NDArray[Any], ...]  # probabilities [N, 10], digits [N] and, with a doubt head, doubts [N]


@dataclass(frozen=True)
class Export:
    """A verified export: its manifest, its files' content by name (the manifest last), and its network in PyTorch."""

    manifest: contract.Manifest
    files: dict[str, bytes]
    classifier: DigitClassifier
    parity: contract.Parity

    def outcome(self) -> str:
        """Return the outcome of the verification in words."""
        return (
            f"on {self.parity.images} test images: every label equals PyTorch's, probabilities within "
            f"{self.parity.max_abs_probability_difference:.1e}; {self.manifest.test_correct} correct"
        )


def print_verified(folder: Path, data_directory: Path) -> None:
    """Verify the export in `folder`, and print the outcome; see verify."""
    print(f"{folder}: verified {verify(folder, load(data_directory)).outcome()}")


def verify(folder: Path, data: Data) -> Export:
    """Verify the export in `folder`: hashes, contract, test accuracy, and parity on every test image of `data`.

    Seed, recipe and revision are compared with the graph's metadata. Raises TrainError, also if the export was
    made with another data set, or TrainError if a file cannot be read.
    """
    path = folder / contract.MANIFEST
    content = read_bytes(path)
    try:
        manifest = contract.parse_manifest(content)
    except contract.ContractError as error:
        raise TrainError(f"{path}: expected a manifest, found: {error}") from error
    if manifest.model not in PROGRESSION:
        raise TrainError(f"{path}: expected a model of {', '.join(PROGRESSION)}, found {manifest.model!r}")
    if manifest.data.sha256 != data.sha256:
        different = ", ".join(sorted(dict(manifest.data.sha256.items() ^ data.sha256.items())))
        found = f"found {data.name}, which differs in {different}"
        raise TrainError(f"{path}: expected the data set of the export, {manifest.data.name}, {found}")
    graph, weights = (read_bytes(folder / name) for name in (contract.GRAPH, contract.WEIGHTS))
    stated = {"onnx.sha256": manifest.onnx.sha256, "weights.sha256": manifest.weights.sha256}
    _check(path, stated, {"onnx.sha256": sha256(graph), "weights.sha256": sha256(weights)})
    classifier = load_classifier(PROGRESSION[manifest.model].network(), weights, folder)
    test = predict(classifier, data.test.images)
    parity = compare(graph, data.test.images, test)
    metadata = {entry.key: entry.value for entry in onnx.load_from_string(graph).metadata_props}
    _check(path, contract.metadata(asdict(manifest)), metadata)
    _check(path, {"test_correct": manifest.test_correct}, {"test_correct": correct(test, data.test)})
    files = {contract.GRAPH: graph, contract.WEIGHTS: weights, contract.MANIFEST: content}
    return Export(manifest, files, classifier, parity)


def _check(path: Path, stated: dict[str, Any], found: dict[str, Any]) -> None:
    for name, value in stated.items():
        if found.get(name) != value:
            raise TrainError(f"{path}: expected {name} as stated, {value}, found {found.get(name)}")


def correct(outputs: Outputs, split: Split) -> int:
    """Return how many digits of `outputs` are the labels of `split`."""
    return int((outputs[1] == split.labels.numpy()).sum())


def predict(classifier: DigitClassifier, images: Tensor) -> Outputs:
    """Return the outputs of `classifier`, on the CPU, for uint8 [N, 28, 28] `images`; see DigitClassifier.forward."""
    classifier = classifier.cpu().eval()
    with torch.inference_mode():
        outputs = zip(*(classifier(batch) for batch in images.cpu().split(1_000)), strict=True)
        return tuple(torch.cat(parts).numpy() for parts in outputs)


def compare(graph: bytes, images: Tensor, expected: Outputs) -> contract.Parity:
    """Compare the outputs of `graph` in ONNX Runtime with the outputs `expected`, of PyTorch, on all test `images`.

    For every batch size of BATCH_SIZES, with graph optimisation off and on, labels must be equal on every image,
    probabilities within TOLERANCE and doubts within DOUBT_TOLERANCE. Raises TrainError with the images that
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
        try:
            session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            contract.check_graph(session)
            for size in BATCH_SIZES:
                batches = np.split(images, range(size, len(images), size))
                runs = [session.run(OUTPUT_NAMES, {contract.IMAGE.name: batch}) for batch in batches]
                outputs = tuple(map(np.concatenate, zip(*runs, strict=True)))
                yield f"at batch size {size}, optimisation {level}", outputs
        except Exception as error:  # ONNX Runtime has many exception types
            raise TrainError(f"expected a valid ONNX graph, found: {error}") from error


def _differences(expected: Outputs, found: Outputs, setting: str) -> tuple[float, float]:
    """Return the largest differences of a probability and of a doubt. Raises TrainError if too large."""
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
        raise TrainError(
            f"the ONNX graph does not predict as the network: {setting}, {wrong.sum()} of {len(digits)} test images "
            f"differ in label ({label.sum()}), by more than {TOLERANCE:g} in probability (at most "
            f"{probability.max():.3g}) or by more than {DOUBT_TOLERANCE:g} in doubt (at most {doubt.max():.3g}), "
            f"the first: {images}"
        )
    return float(probability.max()), float(doubt.max())


def load_classifier(network: nn.Module, content: bytes, source: Path) -> DigitClassifier:
    """Load weights, safetensors `content`, into `network` and a doubt head, and return the classifier of both.

    Raises TrainError if the weights do not fit.
    """
    classifier = DigitClassifier(network, DoubtHead.of(network))
    try:
        tensors = safetensors.torch.load(content)
        classifier.load_state_dict(
            {name if name.startswith("doubt.") else NETWORK + name: tensor for name, tensor in tensors.items()}
        )
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise TrainError(f"{source}: the weights are not those of {type(network).__name__}: {error}") from error
    return classifier.eval()


def weights(classifier: DigitClassifier) -> bytes:
    """Return the weights of `classifier` as safetensors. The network's names are without the prefix NETWORK."""
    tensors = classifier.state_dict()
    return safetensors.torch.save({name.removeprefix(NETWORK): one.contiguous() for name, one in tensors.items()})
