"""A trained network becomes a folder that can be served: graph, weights and, last, the manifest."""

import contextlib
import io
import logging
import warnings
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
import safetensors.torch
import torch
from torch import nn

from model.classifier import DigitClassifier
from model.networks import parameter_count
from train import verify
from train.checkpoint import Epoch
from train.data import Data
from train.files import to_json, write_together
from train.progression import Step

OPSET = 20


@dataclass(frozen=True)
class Trained:
    """A step's network, trained to the end of its recipe."""

    step: Step
    network: nn.Module
    seed: int
    history: list[Epoch]
    provenance: dict[str, Any]


def export(trained: Trained, data: Data, folder: Path) -> dict[str, Any]:
    """Export `trained` into `folder` and return the manifest.

    The graph is verified before anything is written: an older export in `folder` stays as it was where that fails.
    Raises VerificationError, or TrainError where `folder` cannot be written.
    """
    weights = safetensors.torch.save(
        {name: tensor.cpu().contiguous() for name, tensor in trained.network.state_dict().items()}
    )
    network = trained.step.network()  # from the bytes to be written, so that they are what is verified
    verify.load_weights(network, weights, folder / verify.WEIGHTS)
    revision = trained.provenance["source_revision"]
    graph = to_onnx(network, {"model": trained.step.name, "source_revision": revision})
    parity = verify.compare(graph, network, data.test)
    files = {verify.GRAPH: graph, verify.WEIGHTS: weights}
    facts = verify.file_facts(files)
    manifest = {
        "model": trained.step.name,
        "parameters": parameter_count(network),
        "epochs": len(trained.history),
        "seed": trained.seed,
        "recipe": str(trained.step.recipe),
        "validation_accuracy": trained.history[-1].validation_accuracy,
        **verify.test_facts(parity),
        "onnx": {**facts["onnx"], "opset": OPSET},
        "weights": facts["weights"],
        "parity": {name: value for name, value in asdict(parity).items() if name != "correct"},
        "data": {"name": data.name, "sha256": data.sha256},
        "created": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        **trained.provenance,
    }
    write_together(folder, {**files, verify.MANIFEST: to_json(manifest)})
    return manifest


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
