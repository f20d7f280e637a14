"""The contract between training and serving: file names, manifest, and the graph's inputs and outputs.

train writes these files. serve reads the graph and the manifest. Both packages check the files with this module.
"""

import json
from dataclasses import dataclass
from typing import Any

import msgspec

GRAPH, WEIGHTS, MANIFEST = "digits.onnx", "model.safetensors", "manifest.json"
SIDE = 28  # pixels: an image is SIDE × SIDE
CLASSES = 10

# Manifest fields that are also metadata properties of the graph, so that the graph's hash covers them.
METADATA = ("model", "parameters", "epochs", "seed", "recipe", "settings", "source_revision")

ONNX_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)", "int64": "tensor(int64)"}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of the graph: its name, NumPy dtype and shape without the batch dimension."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"`{self.name}`: {self.dtype} [{', '.join(map(str, ('batch', *self.shape)))}]"


IMAGE = TensorSpec("image", "uint8", (SIDE, SIDE))  # white ink (255) on black (0)
INPUTS = (IMAGE,)
OUTPUTS = (
    TensorSpec("probabilities", "float32", (CLASSES,)),
    TensorSpec("digit", "int64", ()),
    TensorSpec("doubt", "float32", ()),  # the larger, the less the image looks like a digit
)


class ContractError(ValueError):
    """A manifest or a graph breaks the contract. The message is one line that states the error."""


@dataclass(frozen=True)
class File:
    """An exported file: its name, SHA-256 and size in bytes."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class GraphFile(File):
    """The file of the ONNX graph, and the graph's opset version."""

    opset: int


@dataclass(frozen=True)
class Parity:
    """The differences between the outputs of the ONNX graph and of the PyTorch network for `images` test images."""

    images: int
    label_mismatches: int
    max_abs_probability_difference: float
    max_abs_doubt_difference: float


@dataclass(frozen=True)
class Doubt:
    """The quality of the output `doubt`. An image is doubted if its doubt is above `threshold`."""

    parameters: int  # number of parameters of the doubt head
    threshold: float  # chosen on the validation images
    validation_doubted: float  # fraction of the validation images, all of them digits, that are doubted
    test_doubted: float  # fraction of the test images that are doubted
    caught: dict[str, float]  # for each kind of non-digit in train.doubt: the fraction of its images that are doubted


@dataclass(frozen=True)
class DataSet:
    """The data set: its name, and the SHA-256 of each unpacked file."""

    name: str
    sha256: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json. Accuracies are fractions, measured with the exported weights."""

    model: str
    parameters: int
    epochs: int
    seed: int
    recipe: str  # the hyper-parameters in words; `settings` contains their values
    validation_accuracy: float
    test_accuracy: float
    test_correct: int
    test_total: int
    onnx: GraphFile
    weights: File
    parity: Parity
    data: DataSet
    created: str
    source_revision: str
    versions: dict[str, str]
    device: str
    settings: dict[str, Any]  # what identifies the training: see train.checkpoint.settings
    doubt: Doubt


def parse_manifest(content: bytes) -> Manifest:
    """Parse a JSON manifest. Unknown fields are ignored. Raises ContractError for invalid JSON or an invalid field."""
    try:
        return msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ContractError(str(error)) from error


def metadata(manifest: dict[str, Any]) -> dict[str, str]:
    """Return the graph's metadata properties, given the manifest's fields. Values other than texts become JSON."""
    return {
        name: manifest[name] if isinstance(manifest[name], str) else json.dumps(manifest[name], sort_keys=True)
        for name in METADATA
    }


def check_graph(session: Any) -> None:
    """Check that the graph in the ONNX Runtime `session` has exactly INPUTS and OUTPUTS, or raise ContractError."""
    for part, specs, values in ("inputs", INPUTS, session.get_inputs()), ("outputs", OUTPUTS, session.get_outputs()):
        expected = [(spec.name, ONNX_TYPES[spec.dtype], ["batch", *spec.shape]) for spec in specs]
        found = [(value.name, value.type, value.shape) for value in values]
        if found != expected:
            raise ContractError(f"expected {part} {expected}, found {found}")
