"""Verify an export: its graph against its weights (train.parity), and its manifest against both and the data set."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from model import contract
from model.classifier import DigitClassifier, DoubtHead
from model.networks import parameter_count
from train import doubt as doubts
from train.data import Data
from train.errors import VerificationError
from train.files import read_bytes, sha256
from train.nondigits import KINDS
from train.parity import DOUBT_TOLERANCE, TOLERANCE, compare, load_graph
from train.predict import Outputs, predict
from train.progression import PROGRESSION

# How much a field of the manifest may differ on another processor, which rounds differently. A few pixels of non-digits
# are also drawn differently.
ROUNDING = {
    "parity.max_abs_probability_difference": TOLERANCE,
    "parity.max_abs_doubt_difference": DOUBT_TOLERANCE,
    "doubt.threshold": DOUBT_TOLERANCE,
    **{f"doubt.caught.{kind}": 0.005 for kind in KINDS},
}
NETWORK = "network."  # DigitClassifier's prefix of the network's weights, which the file leaves out


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

    Raises the errors of train.parity.compare.
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
    classifier = DigitClassifier(network, DoubtHead.of(network))
    try:
        tensors = safetensors.torch.load(content)
        classifier.load_state_dict(
            {name if name.startswith("doubt.") else NETWORK + name: tensor for name, tensor in tensors.items()}
        )
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise VerificationError(f"{source}: the weights are not those of {type(network).__name__}: {error}") from error
    return classifier.eval()


def weights(classifier: DigitClassifier) -> bytes:
    """Return the weights of `classifier` as safetensors. The network's names are without the prefix NETWORK."""
    tensors = classifier.state_dict()
    return safetensors.torch.save({name.removeprefix(NETWORK): one.contiguous() for name, one in tensors.items()})
