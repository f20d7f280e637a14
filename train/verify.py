"""Verify an export: its ONNX graph must predict as the trained network on every image of the test set.

Exporters have written graphs with wrong biases and 0 % accuracy, so only verified graphs are served.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import safetensors
import safetensors.torch
from numpy.typing import NDArray
from onnx.external_data_helper import uses_external_data
from torch import Tensor, nn

from model import contract
from model.classifier import DigitClassifier, DoubtHead
from model.networks import parameter_count
from train import doubt as doubts
from train.data import Data
from train.errors import VerificationError
from train.files import read_bytes, sha256
from train.nondigits import KINDS
from train.predict import Outputs, predict
from train.progression import PROGRESSION

TOLERANCE = 1e-4  # maximum difference of a probability
DOUBT_TOLERANCE = 1e-3  # maximum difference of the doubt, whose values are in the tens
# How much a field of the manifest may differ on another processor, which rounds differently. A few pixels of non-digits
# are also drawn differently.
ROUNDING = {
    "parity.max_abs_probability_difference": TOLERANCE,
    "parity.max_abs_doubt_difference": DOUBT_TOLERANCE,
    "doubt.threshold": DOUBT_TOLERANCE,
    **{f"doubt.caught.{kind}": 0.005 for kind in KINDS},
}
DOUBT = "doubt."  # prefix of the doubt head's weights
BATCH_SIZES = (1, 7, 64, 10_000)
LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

OUTPUT_NAMES = [tensor.name for tensor in contract.OUTPUTS]


@dataclass(frozen=True)
class Export:
    """A verified export: its manifest, its files' content by name, and what was measured."""

    manifest: contract.Manifest
    files: dict[str, bytes]  # the manifest last
    parity: contract.Parity
    validation: Outputs  # of the network in PyTorch on the validation set
    test: Outputs

    def outcome(self) -> str:
        """Return the outcome of the verification in words."""
        return (
            f"on {self.parity.images} test images: every label equals PyTorch's, probabilities within "
            f"{self.parity.max_abs_probability_difference:.1e}; {self.manifest.test_correct} correct"
        )


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
        different = ", ".join(sorted(dict(manifest.data.sha256.items() ^ data.sha256.items())))
        found = f"found {data.name}, which differs in {different}"
        raise VerificationError(f"{path}: expected the data set of the export, {manifest.data.name}, {found}")
    if manifest.doubt is None:
        raise VerificationError(f"{path}: expected doubt, found none")
    if manifest.doubt.caught.keys() != KINDS.keys():
        kinds = ", ".join(manifest.doubt.caught)
        raise VerificationError(f"{path}: expected doubt.caught of {', '.join(KINDS)}, found {kinds or 'none'}")
    files = {name: read_bytes(folder / name) for name in (contract.GRAPH, contract.WEIGHTS)}
    stated = asdict(manifest)
    _check_stated(path, stated, file_facts(files))
    graph = load_graph(files[contract.GRAPH])
    _check_stated(path, stated, {"onnx": {"opset": graph.opset_import[0].version}})
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    _check_stated(path, contract.metadata(stated), {name: metadata.get(name) for name in contract.METADATA})
    classifier = load_classifier(PROGRESSION[manifest.model].network(), files[contract.WEIGHTS], folder)
    facts, validation, test = classifier_facts(files[contract.GRAPH], classifier, data)
    _check_stated(path, stated, facts | {name: asdict(facts[name]) for name in ("parity", "doubt")})
    return Export(manifest, files | {contract.MANIFEST: content}, facts["parity"], validation, test)


def file_facts(files: dict[str, bytes]) -> dict[str, Any]:
    """Return the manifest's fields about an export's files."""
    return {
        part: {"file": name, "sha256": sha256(files[name]), "bytes": len(files[name])}
        for part, name in (("onnx", contract.GRAPH), ("weights", contract.WEIGHTS))
    }


def classifier_facts(graph: bytes, classifier: DigitClassifier, data: Data) -> tuple[dict[str, Any], Outputs, Outputs]:
    """Return the manifest's fields about `classifier` and `graph`, and the outputs on validation and test set.

    Raises the errors of compare.
    """
    validation, test = (predict(classifier, split.images) for split in (data.validation, data.test))
    test_correct = int((test[1] == data.test.labels.numpy()).sum())
    facts = {
        "parameters": parameter_count(classifier.network),
        "validation_accuracy": int((validation[1] == data.validation.labels.numpy()).sum()) / len(data.validation),
        "test_accuracy": test_correct / len(data.test),
        "test_correct": test_correct,
        "test_total": len(data.test),
        "parity": compare(graph, data.test.images, test),
        "doubt": doubts.measure(classifier, data, validation, test),
    }
    return facts, validation, test


def _check_stated(path: Path, stated: dict[str, Any], found: dict[str, Any], within: str = "") -> None:
    """Raise VerificationError if a value of `found` is not as stated in the manifest at `path`, up to ROUNDING."""
    for name, value in found.items():
        given, field = stated.get(name), f"{within}{name}"
        if isinstance(value, dict):
            _check_stated(path, stated[name], value, f"{field}.")
        elif given != value and not _is_rounding(field, given, value):
            raise VerificationError(f"{path}: expected {field} as stated, {given}, found {value}")


def _is_rounding(field: str, stated: Any, found: Any) -> bool:
    """Return whether a stated value may differ from the found one: see ROUNDING."""
    if field not in ROUNDING or not isinstance(stated, int | float):
        return False
    if field.startswith("parity."):  # a difference itself
        return 0 <= stated <= ROUNDING[field]
    return bool(abs(stated - found) <= ROUNDING[field])


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
