"""Parity: a graph that predicts otherwise than its network, on any test image, is refused."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from model.classifier import DigitClassifier
from tests.train.graphs import with_one_weight_changed
from train import export
from train.data import load
from train.errors import VerificationError
from train.parity import compare
from train.predict import predict

# One pytest worker, so that the graph is exported once.
pytestmark = pytest.mark.xdist_group("export")


@pytest.fixture(scope="module")
def data(subset):
    return load(subset)


@pytest.mark.slow
def test_graph_predicts_as_the_network_on_all_of_mnists_test_images(graph, classifier, mnist):
    parity = compare(graph, mnist.test.images, predict(classifier, mnist.test.images))
    assert (parity.images, parity.label_mismatches) == (10_000, 0)
    assert parity.max_abs_probability_difference <= 1e-4
    assert parity.max_abs_doubt_difference <= 1e-3


def test_graph_with_one_weight_changed_is_refused_naming_images(graph, classifier, data):
    with pytest.raises(VerificationError, match=r"\d+ of 300 test images differ .*: \d+ \(PyTorch \d at 0\.\d+, ONNX"):
        compare(with_one_weight_changed(graph), data.test.images, predict(classifier, data.test.images))


def test_graph_whose_digit_is_not_the_most_probable_is_refused(graph, classifier, data):
    model = onnx.load_from_string(graph)
    (node,) = (node for node in model.graph.node if node.op_type == "ArgMax")
    node.op_type = "ArgMin"
    with pytest.raises(VerificationError, match="differ in label"):
        compare(model.SerializeToString(), data.test.images, predict(classifier, data.test.images))


def test_graph_with_another_doubt_is_refused(graph, classifier, data):
    model = onnx.load_from_string(graph)
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name.endswith("detectors.bias"))
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
    message = r"300 of 300 test images differ in label \(0\), .* in doubt \(at most 0\.01"
    with pytest.raises(VerificationError, match=message):
        compare(model.SerializeToString(), data.test.images, predict(classifier, data.test.images))


def test_graph_without_doubt_is_refused(classifier, data):
    without = export.to_onnx(DigitClassifier(classifier.network), {})
    with pytest.raises(VerificationError, match=r"expected outputs .*'doubt'"):
        compare(without, data.test.images, predict(classifier, data.test.images))


def test_graph_of_another_contract_is_refused(graph, classifier, data):
    model = onnx.load_from_string(graph)
    model.graph.output[1].name = "label"
    next(node for node in model.graph.node if node.op_type == "ArgMax").output[0] = "label"
    with pytest.raises(VerificationError, match=r"expected outputs .*digit.*found .*label"):
        compare(model.SerializeToString(), data.test.images, predict(classifier, data.test.images))


def test_graph_that_loads_but_does_not_run_is_refused(graph, classifier, data):
    model = onnx.load_from_string(graph)
    node = next(node for node in model.graph.node if node.op_type == "Unsqueeze")
    reshape = onnx.helper.make_node("Reshape", [node.input[0], "impossible"], node.output)
    node.CopyFrom(reshape)
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, 28, 27]), "impossible"))
    with pytest.raises(VerificationError, match="expected a valid ONNX graph, found: "):
        compare(model.SerializeToString(), data.test.images, predict(classifier, data.test.images))


def test_invalid_onnx_is_refused(classifier, data):
    with pytest.raises(VerificationError, match="expected a valid ONNX graph"):
        compare(b"not ONNX", data.test.images, predict(classifier, data.test.images))
