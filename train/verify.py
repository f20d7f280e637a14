"""Verify an export: its ONNX graph must predict as the trained network on every image of the test set.

Exporters have written graphs with wrong biases and 0 % accuracy, so only verified graphs are served.
"""

from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import safetensors
import safetensors.torch
from numpy.typing import NDArray
from onnx.external_data_helper import uses_external_data
from torch import nn

from model import contract
from model.classifier import DigitClassifier, DoubtHead
from model.networks import parameter_count
from train import doubt as doubts
from train.data import Data, Split
from train.errors import VerificationError
from train.files import read_bytes, sha256
from train.predict import predict
from train.progression import PROGRESSION

TOLERANCE = 1e-4  # maximum difference of a probability
DOUBT_TOLERANCE = 1e-3  # maximum difference of the doubt, whose values are in the tens
FRACTION_TOLERANCE = 0.005  # of the doubted fractions: processors draw a few pixels of non-digits differently
DOUBT = "doubt."  # prefix of the doubt head's weights
BATCH_SIZES = (1, 7, 64, 10_000)
LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

OUTPUT_NAMES = [tensor.name for tensor in contract.OUTPUTS]
Outputs = tuple[NDArray[Any], ...]  # probabilities, digits and doubts


@dataclass(frozen=True)
class Export:
    """A verified export: its manifest, its files' content by name, its classifier and the measured parity."""

    manifest: contract.Manifest
    files: dict[str, bytes]  # the manifest last
    classifier: DigitClassifier
    parity: contract.Parity


def verify(folder: Path, data: Data) -> Export:
    """Verify the export in `folder`: its graph against its weights, and its manifest against both and `data`.

    Accuracies and parity are computed again; seed, recipe and revision are compared with the graph's metadata. Raises
    VerificationError, also if the export was made with another data set, or TrainError if a file cannot be read.
    """
    path = folder / contract.MANIFEST
    content = read_bytes(path)
    try:
        manifest = contract.parse_manifest(content)
    except contract.ContractError as error:
        raise VerificationError(f"{path}: {error}") from error
    if manifest.model not in PROGRESSION:
        raise VerificationError(f"{path}: expected a model of {', '.join(PROGRESSION)}, found {manifest.model!r}")
    if manifest.data.sha256 != data.sha256:
        raise VerificationError(f"{path}: expected the data set of the export, {manifest.data.name}, found {data.name}")
    if manifest.doubt is None:
        raise VerificationError(f"{path}: expected doubt, found none")
    files = {name: read_bytes(folder / name) for name in (contract.GRAPH, contract.WEIGHTS)}
    stated = asdict(manifest)
    _check_stated(path, stated, file_facts(files))
    graph = load_graph(files[contract.GRAPH])
    _check_stated(path, stated, {"onnx": {"opset": graph.opset_import[0].version}})
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    stated_metadata = contract.metadata(stated)
    _check_stated(path, stated_metadata, {name: metadata.get(name) for name in stated_metadata})
    classifier = load_classifier(PROGRESSION[manifest.model].network(), files[contract.WEIGHTS], folder)
    facts = classifier_facts(files[contract.GRAPH], classifier, data)
    found = {name: asdict(fact) if is_dataclass(fact) else fact for name, fact in facts.items()}  # type: ignore[arg-type]
    _accept_rounding(stated, found)
    _check_stated(path, stated, found)
    return Export(manifest, files | {contract.MANIFEST: content}, classifier, facts["parity"])


def _accept_rounding(stated: dict[str, Any], found: dict[str, Any]) -> None:
    """Replace the found values by the stated ones if they differ only by the rounding of another processor."""
    parity, doubt, caught = found["parity"], found["doubt"], found["doubt"]["caught"]
    for name, limit in (("max_abs_probability_difference", TOLERANCE), ("max_abs_doubt_difference", DOUBT_TOLERANCE)):
        value = stated["parity"][name]
        if value is not None and 0 <= value <= limit:
            parity[name] = value
    if abs(stated["doubt"]["threshold"] - doubt["threshold"]) <= DOUBT_TOLERANCE:
        doubt["threshold"] = stated["doubt"]["threshold"]
    for name, value in stated["doubt"]["caught"].items():
        if abs(value - caught.get(name, value)) <= FRACTION_TOLERANCE:
            caught[name] = value


def file_facts(files: dict[str, bytes]) -> dict[str, Any]:
    """Return the manifest's fields about an export's files."""
    return {
        part: {"file": name, "sha256": sha256(files[name]), "bytes": len(files[name])}
        for part, name in (("onnx", contract.GRAPH), ("weights", contract.WEIGHTS))
    }


def classifier_facts(graph: bytes, classifier: DigitClassifier, data: Data) -> dict[str, Any]:
    """Return the manifest's fields about `classifier` and `graph`, measured on `data`. Raises the errors of compare."""
    parity = compare(graph, classifier, data.test)
    test_correct, validation_correct = (
        int((predict(classifier, split.images)[1] == split.labels.cpu().numpy()).sum())
        for split in (data.test, data.validation)
    )
    return {
        "parameters": parameter_count(classifier.network),
        "validation_accuracy": validation_correct / len(data.validation),
        "test_accuracy": test_correct / len(data.test),
        "test_correct": test_correct,
        "test_total": len(data.test),
        "parity": parity,
        "doubt": doubts.measure(classifier, data),
    }


def _check_stated(path: Path, stated: dict[str, Any], found: dict[str, Any], within: str = "") -> None:
    for name, value in found.items():
        if isinstance(value, dict):
            _check_stated(path, stated[name], value, f"{within}{name}.")
        elif stated.get(name) != value:
            raise VerificationError(f"{path}: expected {within}{name} as stated, {stated.get(name)}, found {value}")


def load_classifier(network: nn.Module, content: bytes, source: Path) -> DigitClassifier:
    """Load weights, safetensors `content`, into `network` and a doubt head, and return the classifier of both.

    Raises VerificationError if the weights do not fit.
    """
    head = DoubtHead.of(network)
    try:
        tensors = safetensors.torch.load(content)
        head.load_state_dict(
            {name.removeprefix(DOUBT): tensors.pop(name) for name in [*tensors] if name.startswith(DOUBT)}
        )
        network.load_state_dict(tensors)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise VerificationError(f"{source}: the weights are not those of {type(network).__name__}: {error}") from error
    return DigitClassifier(network, head).eval()


def weights(classifier: DigitClassifier) -> bytes:
    """Return the weights of `classifier` as safetensors. The doubt head's names have the prefix DOUBT."""
    tensors = classifier.network.state_dict()
    if classifier.doubt:
        tensors |= {DOUBT + name: tensor for name, tensor in classifier.doubt.state_dict().items()}
    return safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def compare(graph: bytes, classifier: DigitClassifier, test: Split) -> contract.Parity:
    """Compare `graph` in ONNX Runtime with `classifier` in PyTorch on every image of `test`.

    For every batch size of BATCH_SIZES, with graph optimisation off and on, labels must be equal on every image,
    probabilities within TOLERANCE and doubts within DOUBT_TOLERANCE. Raises VerificationError with the images that
    differ.
    """
    load_graph(graph)
    expected = predict(classifier, test.images)
    images, largest, largest_doubt = test.images.cpu().numpy(), 0.0, 0.0
    for level, optimisation in LEVELS.items():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = optimisation
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for size in BATCH_SIZES:
            batches = np.split(images, range(size, len(images), size))
            runs = [session.run(OUTPUT_NAMES, {contract.IMAGE.name: batch}) for batch in batches]
            found = tuple(map(np.concatenate, zip(*runs, strict=True)))
            differences = _differences(expected, found, f"at batch size {size}, optimisation {level}")
            largest, largest_doubt = max(largest, differences[0]), max(largest_doubt, differences[1])
    return contract.Parity(len(images), 0, largest, largest_doubt)


def _differences(expected: Outputs, found: Outputs, setting: str) -> tuple[float, float]:
    """Return the largest differences of a probability and of a doubt. Raises VerificationError if too large."""
    probabilities, digits, doubt = expected
    found_probabilities, found_digits, found_doubt = found
    difference = np.abs(found_probabilities - probabilities).max(axis=1)
    same = (found_digits == digits) & (found_probabilities.argmax(axis=1) == digits)
    wrong = np.flatnonzero(~(same & (difference <= TOLERANCE)))  # written so that NaN counts as wrong
    if wrong.size:
        examples = ", ".join(
            f"{i} (PyTorch {digits[i]} at {probabilities[i].max():.4f}, "
            f"ONNX {found_digits[i]} at {found_probabilities[i].max():.4f})"
            for i in wrong[:5]
        )
        raise VerificationError(
            f"the ONNX graph does not predict as the network: {setting}, "
            f"{len(wrong)} of {len(digits)} test images differ in label ({int((~same).sum())}) or by more than "
            f"{TOLERANCE:g} in probability (at most {difference.max():.3g}): "
            f"{examples}{', …' if len(wrong) > 5 else ''}"
        )
    doubt_difference = np.abs(found_doubt - doubt)
    wrong = np.flatnonzero(~(doubt_difference <= DOUBT_TOLERANCE))
    if wrong.size:
        raise VerificationError(
            f"the ONNX graph's doubt differs from the network's: {setting}, {len(wrong)} of {len(digits)} test images "
            f"differ by more than {DOUBT_TOLERANCE:g} (at most {doubt_difference.max():.3g}): "
            f"{', '.join(map(str, wrong[:5]))}{', …' if len(wrong) > 5 else ''}"
        )
    return float(difference.max()), float(doubt_difference.max())


def load_graph(content: bytes) -> onnx.ModelProto:
    """Parse an ONNX graph. Raises VerificationError unless it is valid, one file, and follows the contract."""
    try:
        graph = onnx.load_from_string(content)
        _check_one_file(graph)
        onnx.checker.check_model(content, full_check=True)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        contract.check_graph(session)
        session.run(OUTPUT_NAMES, {contract.IMAGE.name: np.zeros((2, *contract.IMAGE.shape), contract.IMAGE.dtype)})
    except contract.ContractError as error:
        raise VerificationError(f"the ONNX graph: {error}") from error
    except Exception as error:  # each library has many exception types
        raise VerificationError(f"expected a valid ONNX graph, found: {error}") from error
    return graph


def _check_one_file(message: Any) -> None:
    """Raise ContractError if any tensor in a protobuf `message` stores its data in another file."""
    if isinstance(message, onnx.TensorProto) and uses_external_data(message):
        raise contract.ContractError(f"expected all its data in one file, found {message.name!r} in another")
    for field, value in message.ListFields():
        if field.message_type:
            for part in [value] if hasattr(value, "ListFields") else value:
                _check_one_file(part)
