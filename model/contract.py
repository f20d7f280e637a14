"""What a release is: its files, its manifest and its graph's inputs and outputs. Imports the standard library only.

train writes a release, serve reads it, and both check it by this module.
"""

import json
import math
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

GRAPH, WEIGHTS, MANIFEST = "digits.onnx", "model.safetensors", "manifest.json"
SIDE = 28  # pixels: an image is SIDE × SIDE
CLASSES = 10

# The fields of a manifest that the graph carries too, as metadata properties: its hash vouches for them.
METADATA = ("model", "parameters", "epochs", "seed", "recipe", "settings", "source_revision")

ONNX_TYPES = {"uint8": "tensor(uint8)", "float32": "tensor(float)", "int64": "tensor(int64)"}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of the graph: its name, its NumPy dtype, and the shape of one image's part."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"`{self.name}`: {self.dtype} [{', '.join(map(str, ('batch', *self.shape)))}]"


IMAGE = TensorSpec("image", "uint8", (SIDE, SIDE))  # white ink, 255, on black, 0
INPUTS = (IMAGE,)
OUTPUTS = (
    TensorSpec("probabilities", "float32", (CLASSES,)),
    TensorSpec("digit", "int64", ()),
    TensorSpec("doubt", "float32", ()),  # how unlike a digit the image is: larger is less alike
)
OUTPUTS_WITHOUT_DOUBT = OUTPUTS[:2]  # of releases from before there was doubt


class ContractError(ValueError):
    """A manifest or a graph is of another form; the message names what was expected and found, in one line."""


@dataclass(frozen=True)
class File:
    """A file of a release."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class GraphFile(File):
    """The ONNX graph."""

    opset: int


@dataclass(frozen=True)
class Parity:
    """How the ONNX graph compares with its PyTorch network on `images` test images."""

    images: int
    label_mismatches: int
    max_abs_probability_difference: float
    max_abs_doubt_difference: float | None = None  # None where the graph gives no doubt


@dataclass(frozen=True)
class Doubt:
    """What the graph's output `doubt` is worth. An image is doubted where its doubt is above `threshold`."""

    parameters: int  # of the head that computes it, beside the network's
    threshold: float  # chosen on the validation images
    validation_doubted: float  # share of the validation images, which are digits
    test_doubted: float  # share of the test images
    caught: dict[str, float]  # share doubted of each kind of train.nondigits


@dataclass(frozen=True)
class DataSet:
    """The data set: its name, and the SHA-256 of each unpacked file."""

    name: str
    sha256: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says. Accuracies are shares of 1, of the exported weights."""

    model: str
    parameters: int
    epochs: int
    seed: int
    recipe: str  # in words; as data it is in `settings`
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
    settings: dict[str, Any] | None = None  # what decided the training's result; None in releases before it was kept
    doubt: Doubt | None = None  # None where the graph gives no doubt


def parse_manifest(content: bytes) -> Manifest:
    """Return the manifest in `content`, JSON; what it has beyond the contract is ignored. Raises ContractError."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"expected JSON, found {len(content)} bytes that are not: {error}") from error
    manifest: Manifest = _typed(value, Manifest, "")
    return manifest


def metadata(facts: dict[str, Any]) -> dict[str, str]:
    """Return the metadata properties of the graph whose manifest has these `facts`."""
    return {
        name: facts[name] if isinstance(facts[name], str) else json.dumps(facts[name], sort_keys=True)
        for name in METADATA
    }


def check_graph(session: Any) -> None:
    """Raise ContractError where the graph in `session`, ONNX Runtime's, has other inputs or outputs.

    `doubt` is optional: a graph may have the outputs before it alone.
    """
    outputs = session.get_outputs()
    expected_outputs = OUTPUTS_WITHOUT_DOUBT if len(outputs) == len(OUTPUTS_WITHOUT_DOUBT) else OUTPUTS
    for part, specs, values in (("inputs", INPUTS, session.get_inputs()), ("outputs", expected_outputs, outputs)):
        expected = [(spec.name, ONNX_TYPES[spec.dtype], ["batch", *spec.shape]) for spec in specs]
        found = [(value.name, value.type, value.shape) for value in values]
        if found != expected:
            raise ContractError(f"expected {part} {expected}, found {found}")


def _typed(value: Any, kind: Any, name: str) -> Any:
    """Return the JSON `value` as a `kind`: a dataclass, a dict, str, int, float, or one of them or None."""
    if isinstance(kind, UnionType):
        return None if value is None else _typed(value, get_args(kind)[0], name)
    if is_dataclass(kind):
        hints, known = get_type_hints(kind), _typed(value, dict, name)
        found = {}
        for field in fields(kind):
            path = f"{name}.{field.name}".lstrip(".")
            if field.name in known:
                found[field.name] = _typed(known[field.name], hints[field.name], path)
            elif field.default is MISSING:
                raise ContractError(f"expected {path}, found none")
        return kind(**found)  # type: ignore[operator]
    if get_origin(kind) is dict:
        known, of = _typed(value, dict, name), get_args(kind)[1]
        return {key: part if of is Any else _typed(part, of, f"{name}.{key}") for key, part in known.items()}
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool) or not _finite(value):
        expected = {dict: "an object", str: "text", int: "a whole number", float: "a number"}[kind]
        raise ContractError(f"{name or 'manifest'}: expected {expected}, found {value!r:.80}")
    return value


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
