"""Export a trained network to a folder that can be served: ONNX graph, weights and manifest."""

import contextlib
import io
import logging
import warnings
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import onnx
import torch

from model import contract
from model.classifier import DigitClassifier
from model.networks import parameter_count
from train import doubt, verify
from train.checkpoint import settings
from train.data import Data
from train.drawn_digits import with_drawn_digits
from train.files import sha256, to_json, write_together
from train.trainings import Trained

OPSET = 20


def export(trained: Trained, data: Data, folder: Path) -> verify.Export:
    """Export `trained` to `folder`, verified.

    The graph is verified before anything is written; if that fails, an older export in `folder` is unchanged. Raises
    also if `folder` cannot be written.
    """
    network = trained.network.cpu().eval()
    training_images = with_drawn_digits(data.train, trained.experiment.recipe.drawn_digits)
    weights = verify.weights(DigitClassifier(network, doubt.fit(network, training_images)))
    # Load the classifier from the bytes to be written, so that these are verified.
    classifier = verify.load_classifier(trained.experiment.network(), weights, folder / contract.WEIGHTS)
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
    validation, test = (verify.predict(classifier, split.images) for split in (data.validation, data.test))
    parity, test_correct = verify.compare(graph, data.test.images, test), verify.correct(test, data.test)
    manifest = contract.Manifest(
        **training,
        validation_accuracy=verify.correct(validation, data.validation) / len(data.validation),
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
    return verify.Export(manifest, files, classifier, parity)


def to_onnx(classifier: DigitClassifier, metadata: dict[str, str]) -> bytes:
    """Convert `classifier` to an ONNX graph with `metadata` as its properties."""
    outputs = contract.OUTPUTS if classifier.doubt else contract.OUTPUTS[:2]
    example = torch.zeros(2, *contract.IMAGE.shape, dtype=getattr(torch, contract.IMAGE.dtype))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the exporter prints its progress
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            classifier.cpu().eval(),
            (example,),
            input_names=[tensor.name for tensor in contract.INPUTS],
            output_names=[tensor.name for tensor in outputs],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program, "with dynamo=True there is one"
    graph = program.model_proto
    _strip(graph)
    onnx.helper.set_model_props(graph, metadata)
    return bytes(graph.SerializeToString())


def _strip(model: onnx.ModelProto) -> None:
    """Delete what the exporter stores about this machine: stack traces with file paths on every node."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
