"""The proof that an ONNX file predicts as the network that was trained, on every image of the test set.

Exporters have shipped graphs with wrong biases and an accuracy of 0 %: nothing is served that has not passed here.
"""

from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import safetensors
import safetensors.torch
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

TOLERANCE = 1e-4  # the largest difference allowed of any probability
DOUBT_TOLERANCE = 1e-3  # the same of doubt, whose values are tens
SHARE_TOLERANCE = 0.005  # of what is caught: another processor draws some pixels otherwise
DOUBT = "doubt."  # what the names of the head's weights begin with
BATCH_SIZES = (1, 7, 64, 10_000)
LEVELS = {
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


@dataclass(frozen=True)
class Export:
    """A verified export: its manifest, its files by name, as they were when verified, and what it was found to do."""

    manifest: contract.Manifest
    files: dict[str, bytes]  # the manifest last
    classifier: DigitClassifier
    parity: contract.Parity


def verify(folder: Path, data: Data) -> Export:
    """Check the export in `folder`: its graph against its weights, and all that its manifest says, on `data`.

    Accuracies and parity are computed again; seed, recipe and revision are compared with the graph's metadata. Raises
    VerificationError, also where `data` is not the set it was made with, or TrainError where a file cannot be read.
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
        raise VerificationError(
            f"{path}: expected the data set it was made with, {manifest.data.name}, found {data.name}"
        )
    files = {name: read_bytes(folder / name) for name in (contract.GRAPH, contract.WEIGHTS)}
    stated = asdict(manifest)
    _check_stated(path, stated, file_facts(files))
    graph = load_graph(files[contract.GRAPH])
    _check_stated(path, stated, {"onnx": {"opset": graph.opset_import[0].version}})
    training = contract.metadata(stated)
    found = {entry.key: entry.value for entry in graph.metadata_props}
    if manifest.settings is None:  # releases from before there were settings say less of their training
        training = {name: text for name, text in training.items() if name in found}
    _check_stated(path, training, {name: found.get(name) for name in training})
    classifier = load_classifier(PROGRESSION[manifest.model].network(), files[contract.WEIGHTS], folder)
    facts = classifier_facts(files[contract.GRAPH], classifier, data)
    parity = facts["parity"]
    found = {name: asdict(fact) if is_dataclass(fact) else fact for name, fact in facts.items()}  # type: ignore[arg-type]
    if (found["doubt"] is None) != (manifest.doubt is None):
        raise VerificationError(f"{path}: expected doubt as stated, {manifest.doubt}, found {facts['doubt']}")
    _round_alike(stated, found)
    _check_stated(path, stated, found)
    return Export(manifest, files | {contract.MANIFEST: content}, classifier, parity)


def _round_alike(stated: dict[str, Any], found: dict[str, Any]) -> None:
    """Put what is stated for what is found, where they differ by no more than processors round differently."""
    differences = {"max_abs_probability_difference": TOLERANCE, "max_abs_doubt_difference": DOUBT_TOLERANCE}
    for name, tolerance in differences.items():
        value = stated["parity"][name]
        if value is not None and found["parity"][name] is not None and 0 <= value <= tolerance:
            found["parity"][name] = value
    if found["doubt"]:
        for of_it, said, tolerance in (
            (found["doubt"], {"threshold": stated["doubt"]["threshold"]}, DOUBT_TOLERANCE),
            (found["doubt"]["caught"], stated["doubt"]["caught"], SHARE_TOLERANCE),
        ):
            of_it |= {name: value for name, value in said.items() if abs(value - of_it.get(name, value)) <= tolerance}


def file_facts(files: dict[str, bytes]) -> dict[str, Any]:
    """Return what a manifest says of an export's files."""
    return {
        part: {"file": name, "sha256": sha256(files[name]), "bytes": len(files[name])}
        for part, name in (("onnx", contract.GRAPH), ("weights", contract.WEIGHTS))
    }


def classifier_facts(graph: bytes, classifier: DigitClassifier, data: Data) -> dict[str, Any]:
    """Return what a manifest says of `classifier` and `graph` together, found on `data`; raises what compare does."""
    parity = compare(graph, classifier, data.test)
    right, right_of_validation = (
        int((predict(classifier, split.images)[1] == split.labels.cpu().numpy()).sum())
        for split in (data.test, data.validation)
    )
    return {
        "parameters": parameter_count(classifier.network),
        "validation_accuracy": right_of_validation / len(data.validation),
        "test_accuracy": right / len(data.test),
        "test_correct": right,
        "test_total": len(data.test),
        "parity": parity,
        "doubt": doubts.measure(classifier, data) if classifier.doubt else None,
    }


def _check_stated(path: Path, stated: dict[str, Any], found: dict[str, Any], within: str = "") -> None:
    for name, value in found.items():
        if isinstance(value, dict):
            _check_stated(path, stated[name] or {}, value, f"{within}{name}.")
        elif stated.get(name) != value:
            raise VerificationError(f"{path}: expected {within}{name} as stated, {stated.get(name)}, found {value}")


def load_classifier(network: nn.Module, content: bytes, source: Path) -> DigitClassifier:
    """Return the classifier of `network` with the weights in the safetensors `content`, and its doubt if they have it.

    Raises VerificationError where they do not fit.
    """
    try:
        tensors = safetensors.torch.load(content)
        doubt = {name: tensors.pop(name) for name in sorted(tensors) if name.startswith(DOUBT)}
        network.load_state_dict(tensors)
        classifier = DigitClassifier(network, DoubtHead.of(network) if doubt else None)
        if classifier.doubt:
            classifier.doubt.load_state_dict({name.removeprefix(DOUBT): tensor for name, tensor in doubt.items()})
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise VerificationError(f"{source}: the weights are not those of {type(network).__name__}: {error}") from error
    return classifier.eval()


def weights(classifier: DigitClassifier) -> bytes:
    """Return the weights of `classifier` as safetensors: the network's under their own names, doubt's under DOUBT."""
    tensors = classifier.network.state_dict()
    if classifier.doubt:
        tensors |= {DOUBT + name: tensor for name, tensor in classifier.doubt.state_dict().items()}
    return safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def compare(graph: bytes, classifier: DigitClassifier, test: Split) -> contract.Parity:
    """Run every image of `test` through `classifier` in PyTorch and `graph` in ONNX Runtime, and compare.

    At every batch size of BATCH_SIZES and with the runtime's graph optimisation off and on, labels must be equal on
    every image, probabilities within TOLERANCE and doubts within DOUBT_TOLERANCE. Raises VerificationError, naming the
    images that differ.
    """
    load_graph(graph)
    probabilities, digits, *doubt = predict(classifier, test.images)
    names = [tensor.name for tensor in contract.OUTPUTS[: 2 + len(doubt)]]
    images, largest, largest_doubt = test.images.cpu().numpy(), 0.0, 0.0
    for level, optimisation in LEVELS.items():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = optimisation
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        if [output.name for output in session.get_outputs()] != names:
            raise VerificationError(
                f"expected the outputs of the network, {', '.join(names)}; found another number of them in the graph"
            )
        for size in BATCH_SIZES:
            where = f"at batch {size}, optimisation {level}"
            batches = np.split(images, range(size, len(images), size))
            runs = [session.run(names, {contract.IMAGE.name: batch}) for batch in batches]
            found_probabilities, found_digits, *found_doubt = map(np.concatenate, zip(*runs, strict=True))
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
                    f"the ONNX graph does not predict as the network: {where}, "
                    f"{len(wrong)} of {len(images)} test images differ in label ({int((~same).sum())}) or by more than "
                    f"{TOLERANCE:g} in probability (by {difference.max():.3g} at most): "
                    f"{named}{', …' if len(wrong) > 5 else ''}"
                )
            largest = max(largest, float(difference.max()))
            for expected, found in zip(doubt, found_doubt, strict=True):
                doubts = np.abs(found - expected)
                wrong = np.flatnonzero(~(doubts <= DOUBT_TOLERANCE))
                if wrong.size:
                    raise VerificationError(
                        f"the ONNX graph does not doubt as the network: {where}, {len(wrong)} of {len(images)} test "
                        f"images differ by more than {DOUBT_TOLERANCE:g} (by {doubts.max():.3g} at most): "
                        f"{', '.join(map(str, wrong[:5]))}{', …' if len(wrong) > 5 else ''}"
                    )
                largest_doubt = max(largest_doubt, float(doubts.max()))
    return contract.Parity(len(images), 0, largest, largest_doubt if doubt else None)


def load_graph(content: bytes) -> onnx.ModelProto:
    """Return the ONNX graph in `content`. Raises VerificationError unless it is valid, whole and the contract's."""
    try:
        graph = onnx.load_from_string(content)
        _check_one_file(graph)
        onnx.checker.check_model(content, full_check=True)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        contract.check_graph(session)
        session.run(None, {contract.IMAGE.name: np.zeros((2, *contract.IMAGE.shape), contract.IMAGE.dtype)})
    except contract.ContractError as error:
        raise VerificationError(f"the ONNX graph: {error}") from error
    except Exception as error:  # each library has many of its own
        raise VerificationError(f"expected a valid ONNX graph, found: {error}") from error
    return graph


def _check_one_file(message: Any) -> None:
    """Raise ContractError where a tensor anywhere in a protobuf `message` has its data in another file."""
    if isinstance(message, onnx.TensorProto) and uses_external_data(message):
        raise contract.ContractError(f"expected all its data in one file, found {message.name!r} in another")
    for field, value in message.ListFields():
        if field.message_type:
            for part in [value] if hasattr(value, "ListFields") else value:
                _check_one_file(part)
