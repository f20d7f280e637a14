"""Export a trained network as a folder with ONNX graph, weights and manifest, and verify such an export.

Some versions of torch's ONNX exporter wrote graphs with wrong biases and 0 % accuracy. Therefore a graph is verified
before it is written. A verified graph gives the same predictions as its network on every test image.
"""

import contextlib
import io
import logging
import warnings
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from model import contract
from model.classifier import DigitClassifier, Outputs, predict
from model.networks import parameter_count
from train import TrainError, doubt
from train.checkpoint import settings
from train.data import Data, Split
from train.drawn_digits import with_drawn_digits
from train.files import read_bytes, sha256, to_json, write_together
from train.progression import PROGRESSION
from train.trainings import Trained

OPSET = 20
TOLERANCE = 1e-4  # maximum difference of a probability between ONNX Runtime and PyTorch
DOUBT_TOLERANCE = 1e-3  # maximum difference of a doubt; doubts are between about -20 and 20
BATCH_SIZES = (1, 7, 64, 10_000)
OUTPUT_NAMES = [tensor.name for tensor in contract.OUTPUTS]
NETWORK = "network."  # prefix of the network's weights in DigitClassifier; model.safetensors lacks this prefix


@dataclass(frozen=True)
class Export:
    """A verified export: manifest, content of the files by name (manifest last), PyTorch classifier, and parity."""

    manifest: contract.Manifest
    files: dict[str, bytes]
    classifier: DigitClassifier
    parity: contract.Parity

    def outcome(self) -> str:
        """Return the outcome of the verification in words."""
        return (
            f"on {self.parity.images} test images: every label equals PyTorch's, probabilities differ by at most "
            f"{self.parity.max_abs_probability_difference:.1e}; {self.manifest.test_correct} correct"
        )


def export(trained: Trained, data: Data, folder: Path) -> Export:
    """Verify the export of `trained` and write it to `folder`.

    The graph is verified before anything is written. If the verification fails, an older export in `folder` stays
    unchanged. Raises TrainError if the verification fails or `folder` cannot be written.
    """
    network = trained.network.cpu().eval()
    training_images = with_drawn_digits(data.train, trained.experiment.recipe.drawn_digits)
    weights = save_weights(DigitClassifier(network, doubt.fit(network, training_images)))
    # Load the classifier from the bytes to be written, so that the verification covers these bytes.
    classifier = load_classifier(trained.experiment.network(), weights, folder / contract.WEIGHTS)
    training = {
        "model": trained.experiment.name,
        "parameters": parameter_count(classifier.network),
        "epochs": len(trained.history),
        "seed": trained.seed,
        "recipe": str(trained.experiment.recipe),
        "settings": settings(trained.experiment, data, trained.seed),
        **trained.provenance,
    }
    graph = to_onnx(classifier, contract.metadata(training))
    validation, test = (predict(classifier, split.images) for split in (data.validation, data.test))
    parity, test_correct = compare(graph, data.test.images, test), _correct(test, data.test)
    manifest = contract.Manifest(
        **training,
        validation_accuracy=_correct(validation, data.validation) / len(data.validation),
        test_accuracy=test_correct / len(data.test),
        test_correct=test_correct,
        test_total=len(data.test),
        onnx=contract.GraphFile(contract.GRAPH, sha256(graph), len(graph), OPSET),
        weights=contract.File(contract.WEIGHTS, sha256(weights), len(weights)),
        parity=parity,
        data=contract.DataSet(data.name, data.sha256),
        doubt=doubt.measure(classifier, data, validation, test),
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    )
    files = {contract.GRAPH: graph, contract.WEIGHTS: weights, contract.MANIFEST: to_json(asdict(manifest))}
    write_together(folder, files)
    return Export(manifest, files, classifier, parity)


def to_onnx(classifier: DigitClassifier, metadata: dict[str, str]) -> bytes:
    """Convert `classifier` to an ONNX graph with `metadata` as its properties."""
    example = torch.zeros(2, *contract.IMAGE.shape, dtype=getattr(torch, contract.IMAGE.dtype))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the exporter prints its progress
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            classifier.cpu().eval(),
            (example,),
            input_names=[contract.IMAGE.name],
            output_names=OUTPUT_NAMES,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program, "with dynamo=True, torch.onnx.export returns a program"
    model = program.model_proto
    graph = model.graph
    # Delete what the exporter stores about this machine: stack traces with file paths on every node.
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.helper.set_model_props(model, metadata)
    return bytes(model.SerializeToString())


def verify(folder: Path, data: Data) -> Export:
    """Verify the export in `folder`: hashes, contract, test accuracy, and parity with PyTorch on all test images.

    The manifest's seed, recipe and revision must equal the graph's metadata. Raises TrainError if a check fails, if the
    export was made with another data set than `data`, or if a file cannot be read.
    """
    path = folder / contract.MANIFEST
    content = read_bytes(path)
    try:
        manifest = contract.parse_manifest(content)
    except contract.ContractError as error:
        raise TrainError(f"{path}: expected a manifest, found: {error}") from error
    if manifest.model not in PROGRESSION:
        raise TrainError(f"{path}: expected one of the models {', '.join(PROGRESSION)}, found {manifest.model!r}")
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
    _check(path, {"test_correct": manifest.test_correct}, {"test_correct": _correct(test, data.test)})
    files = {contract.GRAPH: graph, contract.WEIGHTS: weights, contract.MANIFEST: content}
    return Export(manifest, files, classifier, parity)


def _check(path: Path, stated: dict[str, Any], found: dict[str, Any]) -> None:
    for name, value in stated.items():
        if found.get(name) != value:
            raise TrainError(f"{path}: expected {name} {value}, as the manifest states, found {found.get(name)}")


def _correct(outputs: Outputs, split: Split) -> int:
    """Return how many predicted digits in `outputs` equal the labels of `split`."""
    return int((outputs[1] == split.labels.numpy()).sum())


def compare(graph: bytes, images: Tensor, expected: Outputs) -> contract.Parity:
    """Compare the outputs of `graph` in ONNX Runtime with PyTorch's outputs, `expected`, on all test `images`.

    This is done for every batch size of BATCH_SIZES, with graph optimisation off and on. Labels must be equal on every
    image. Probabilities may differ by TOLERANCE, doubts by DOUBT_TOLERANCE. Raises TrainError, which names the first
    image that differs, or if the graph does not run or breaks the contract.
    """
    differences = []
    for level in ("DISABLE", "ENABLE"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{level}_ALL")
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            contract.check_graph(session)
            for size in BATCH_SIZES:
                batches = np.split(images.cpu().numpy(), range(size, len(images), size))
                runs = [session.run(OUTPUT_NAMES, {contract.IMAGE.name: batch}) for batch in batches]
                found, setting = tuple(map(np.concatenate, zip(*runs, strict=True))), f"optimisation {level.lower()}d"
                differences.append(_differences(expected, found, f"at batch size {size}, {setting}"))
        except TrainError:
            raise
        except Exception as error:  # ONNX Runtime has many exception types
            raise TrainError(f"expected a valid ONNX graph, found: {error}") from error
    probability, doubt = map(max, zip(*differences, strict=True))
    return contract.Parity(len(images), 0, probability, doubt)


def _differences(expected: Outputs, found: Outputs, setting: str) -> tuple[float, float]:
    """Return the largest differences of probability and doubt. TrainError: a label differs, or a value too much."""
    probabilities, digits, _ = expected
    label = (found[1] != digits) | (found[0].argmax(axis=1) != digits)
    probability, doubt = np.abs(found[0] - probabilities).max(axis=1), np.abs(found[2] - expected[2])
    # `~(a <= b)` instead of `a > b`, so that NaN counts as wrong.
    wrong = label | ~(probability <= TOLERANCE) | ~(doubt <= DOUBT_TOLERANCE)
    if wrong.any():
        first = int(wrong.argmax())
        raise TrainError(
            f"the ONNX graph does not predict as the network: {setting}, {wrong.sum()} of {len(digits)} test images "
            f"differ in label ({label.sum()}), by more than {TOLERANCE:g} in probability (maximum "
            f"{probability.max():.3g}) or by more than {DOUBT_TOLERANCE:g} in doubt (maximum {doubt.max():.3g}); "
            f"the first is image {first}: PyTorch {digits[first]}, ONNX {found[1][first]}"
        )
    return float(probability.max()), float(doubt.max())


def load_classifier(network: nn.Module, content: bytes, source: Path) -> DigitClassifier:
    """Load the weights in `content` (safetensors) into `network` and a new doubt head; return both as a classifier.

    Raises TrainError if the weights do not fit.
    """
    classifier = DigitClassifier(network)
    try:
        tensors = safetensors.torch.load(content)
        classifier.load_state_dict(
            {name if name.startswith("doubt.") else NETWORK + name: tensor for name, tensor in tensors.items()}
        )
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise TrainError(f"{source}: the weights are not those of {type(network).__name__}: {error}") from error
    return classifier.eval()


def save_weights(classifier: DigitClassifier) -> bytes:
    """Return the weights of `classifier` as safetensors. The prefix NETWORK is removed from the network's names."""
    tensors = classifier.state_dict()
    return safetensors.torch.save({name.removeprefix(NETWORK): one.contiguous() for name, one in tensors.items()})
