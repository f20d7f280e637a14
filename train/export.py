"""A trained network becomes a folder that can be served: graph, weights and, last, the manifest."""

import contextlib
import io
import logging
import os
import subprocess
import warnings
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import onnx
import safetensors.torch
import torch
from torch import nn

from model.classifier import DigitClassifier
from model.networks import NETWORKS, parameter_count
from train import verify
from train.checkpoint import Epoch
from train.data import Data
from train.errors import TrainError
from train.files import sha256, write_bytes, write_json

OPSET = 20
GRAPH, WEIGHTS = "digits.onnx", "model.safetensors"
LIBRARIES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy", "safetensors")


@dataclass(frozen=True)
class Trained:
    """A network trained to the end of its recipe."""

    name: str
    network: nn.Module
    seed: int
    history: list[Epoch]


def export(trained: Trained, data: Data, folder: Path) -> dict[str, Any]:
    """Export `trained` into `folder` and return the manifest.

    The graph is verified before anything is written: an older export in `folder` stays as it was where that fails.
    Raises VerificationError, or TrainError where `folder` cannot be written.
    """
    weights = safetensors.torch.save(
        {name: tensor.cpu().contiguous() for name, tensor in trained.network.state_dict().items()}
    )
    network = NETWORKS[trained.name]()  # from the bytes to be written, so that they are what is verified
    verify.load_weights(network, weights, folder / WEIGHTS)
    revision = source_revision()
    graph = to_onnx(network, {"model": trained.name, "source_revision": revision})
    parity = verify.compare(graph, network, data.test)
    manifest = {
        "model": trained.name,
        "parameters": parameter_count(network),
        "epochs": len(trained.history),
        "seed": trained.seed,
        "validation_accuracy": trained.history[-1].validation_accuracy,
        "test_accuracy": parity.correct / parity.images,
        "test_correct": parity.correct,
        "test_total": parity.images,
        "onnx": {"file": GRAPH, "sha256": sha256(graph), "opset": OPSET, "bytes": len(graph)},
        "weights": {"file": WEIGHTS, "sha256": sha256(weights), "bytes": len(weights)},
        "parity": {name: value for name, value in asdict(parity).items() if name != "correct"},
        "data": {"name": data.name, "sha256": data.sha256},
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "source_revision": revision,
        "versions": {"python": python_version()} | {library: version(library) for library in LIBRARIES},
    }
    write_folder(folder, {GRAPH: graph, WEIGHTS: weights}, manifest)
    return manifest


def write_folder(folder: Path, files: dict[str, bytes], manifest: dict[str, Any]) -> None:
    """Write `files`, then the manifest that vouches for them; at no moment does it vouch for others."""
    try:
        (folder / verify.MANIFEST).unlink(missing_ok=True)
    except OSError as error:
        raise TrainError(f"cannot write {folder / verify.MANIFEST}: {error.strerror}") from error
    for name, content in files.items():
        write_bytes(folder / name, content)
    write_json(folder / verify.MANIFEST, manifest)


def to_onnx(network: nn.Module, metadata: dict[str, str]) -> bytes:
    """Return `network`'s classifier as an ONNX graph (see DigitClassifier), with `metadata` as its properties."""
    example = torch.zeros(2, 28, 28, dtype=torch.uint8)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the exporter is talkative
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            DigitClassifier(network).cpu().eval(),
            (example,),
            input_names=["image"],
            output_names=["probabilities", "digit"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:  # with dynamo=True it never is
        raise AssertionError
    graph = program.model_proto
    _strip(graph)
    onnx.helper.set_model_props(graph, {**metadata, "parameters": str(parameter_count(network))})
    return bytes(graph.SerializeToString())


def _strip(model: onnx.ModelProto) -> None:
    """Delete what the exporter tells of the machine: stack traces, with its file paths, on every node."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def source_revision() -> str:
    """Return the commit of this source, with `-dirty` where files differ from it; `unknown` outside a checkout.

    An image has no checkout: there SOURCE_REVISION states it.
    """
    if stated := os.environ.get("SOURCE_REVISION"):
        return stated
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--", "model/*.py", "train"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.strip() + ("-dirty" if changes else "")
