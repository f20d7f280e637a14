"""The proof that an ONNX file predicts as the network that was trained, on every image of the test set.

Exporters have shipped graphs with wrong biases and an accuracy of 0 %: nothing is served that has not passed here.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from onnx.external_data_helper import uses_external_data
from torch import Tensor, nn

from model import contract
from model.classifier import DigitClassifier
from model.networks import parameter_count
from train.data import Data, Split
from train.errors import VerificationError
from train.files import read_bytes, sha256
from train.progression import PROGRESSION

TOLERANCE = 1e-4  # the largest difference allowed of any probability
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
    network = PROGRESSION[manifest.model].network()
    load_weights(network, files[contract.WEIGHTS], folder)
    facts = network_facts(files[contract.GRAPH], network, data)
    parity = facts["parity"]
    difference = manifest.parity.max_abs_probability_difference
    if 0 <= difference <= TOLERANCE:  # else it is another one than this processor's: they round differently
        facts["parity"] = replace(parity, max_abs_probability_difference=difference)
    _check_stated(path, stated, facts | {"parity": asdict(facts["parity"])})
    return Export(manifest, files | {contract.MANIFEST: content}, parity)


def file_facts(files: dict[str, bytes]) -> dict[str, Any]:
    """Return what a manifest says of an export's files."""
    return {
        part: {"file": name, "sha256": sha256(files[name]), "bytes": len(files[name])}
        for part, name in (("onnx", contract.GRAPH), ("weights", contract.WEIGHTS))
    }


def network_facts(graph: bytes, network: nn.Module, data: Data) -> dict[str, Any]:
    """Return what a manifest says of `network` and `graph` together, found on `data`; raises what compare does."""
    parity = compare(graph, network, data.test)
    right, right_of_validation = (
        int((predict(network, split.images)[1] == split.labels.cpu().numpy()).sum())
        for split in (data.test, data.validation)
    )
    return {
        "parameters": parameter_count(network),
        "validation_accuracy": right_of_validation / len(data.validation),
        "test_accuracy": right / len(data.test),
        "test_correct": right,
        "test_total": len(data.test),
        "parity": parity,
    }


def _check_stated(path: Path, stated: dict[str, Any], found: dict[str, Any], within: str = "") -> None:
    for name, value in found.items():
        if isinstance(value, dict):
            _check_stated(path, stated[name], value, f"{within}{name}.")
        elif stated[name] != value:
            raise VerificationError(f"{path}: expected {within}{name} as stated, {stated[name]}, found {value}")


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
        raise VerificationError(f"{source}: the weights are not those of {type(network).__name__}: {error}") from error


def compare(graph: bytes, network: nn.Module, test: Split) -> contract.Parity:
    """Run every image of `test` through `network` in PyTorch and `graph` in ONNX Runtime, and compare.

    At every batch size of BATCH_SIZES and with the runtime's graph optimisation off and on, labels must be equal on
    every image and probabilities within TOLERANCE. Raises VerificationError, naming the images that differ.
    """
    load_graph(graph)
    probabilities, digits = predict(network, test.images)
    images, largest = test.images.cpu().numpy(), 0.0
    for level, optimisation in LEVELS.items():
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = optimisation
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for size in BATCH_SIZES:
            batches = np.split(images, range(size, len(images), size))
            runs = [session.run(["probabilities", "digit"], {contract.IMAGE.name: batch}) for batch in batches]
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
    return contract.Parity(len(images), 0, largest)


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
