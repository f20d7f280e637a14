"""Parity: a graph that predicts otherwise than its network, on any test image in any setting, is refused."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from tests.train.graphs import with_one_weight_changed
from train import TrainError
from train.data import load
from train.verify import compare, predict

# One pytest worker, so that the graph is exported once.
pytestmark = pytest.mark.xdist_group("export")
OFF, ALL = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


@pytest.fixture(scope="module")
def data(subset):
    return load(subset)


@pytest.fixture
def compare_with(graph, classifier, data, monkeypatch):
    """Return a function that compares the graph, whose outputs an `error` changes in one setting, with its network."""
    session = onnxruntime.InferenceSession

    def run(error, batch_size=64, level=ALL):
        class Faulty:
            def __init__(self, content, options, **others):
                self.session, self.level = session(content, options, **others), options.graph_optimization_level

            def __getattr__(self, name):
                return getattr(self.session, name)

            def run(self, names, inputs):
                outputs = self.session.run(names, inputs)
                if self.level == level and len(inputs["image"]) == batch_size:
                    error(*outputs)
                return outputs

        monkeypatch.setattr(onnxruntime, "InferenceSession", Faulty)
        return compare(graph, data.test.images, predict(classifier, data.test.images))

    return run


def change_digit(_probabilities, digit, _doubt):
    digit[-1] = (digit[-1] + 1) % 10


@pytest.mark.parametrize("level", [OFF, ALL])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 300])  # all 300 images for the size 10,000
def test_one_wrong_digit_in_any_setting_is_refused(batch_size, level, compare_with):
    with pytest.raises(TrainError, match=r"of 300 test images differ in label \(\d+\).* \d+ \(PyTorch \d at 0\."):
        compare_with(change_digit, batch_size, level)


@pytest.mark.parametrize(("output", "tolerance"), [(0, 1e-4), (2, 1e-3)])
def test_probabilities_agree_within_1e_4_and_doubts_within_1e_3(output, tolerance, compare_with):
    def change(by):
        def error(*outputs):
            outputs[output][-1] += by

        return error

    parity = compare_with(change(0.9 * tolerance), 300)
    differences = parity.max_abs_probability_difference, parity.max_abs_doubt_difference
    assert differences[output // 2] == pytest.approx(0.9 * tolerance, rel=0.05)
    for error in (1.1 * tolerance, -1.1 * tolerance, np.nan):
        with pytest.raises(TrainError, match="1 of 300 test images differ"):
            compare_with(change(error), 300)


def test_digit_that_is_not_the_most_probable_is_refused(compare_with):
    def swap(probabilities, *_):
        probabilities[:] = probabilities[:, ::-1]

    with pytest.raises(TrainError, match=r"differ in label \(300\)"):
        compare_with(swap, 300)


@pytest.mark.slow
def test_graph_predicts_as_the_network_on_all_of_mnists_test_images(graph, classifier, mnist):
    parity = compare(graph, mnist.test.images, predict(classifier, mnist.test.images))
    assert (parity.images, parity.label_mismatches) == (10_000, 0)


def rename_output(model):
    model.graph.output[1].name = "label"
    next(node for node in model.graph.node if node.op_type == "ArgMax").output[0] = "label"


def leave_out_doubt(model):
    del model.graph.output[2]


def reshape_wrongly(model):
    node = next(node for node in model.graph.node if node.op_type == "Unsqueeze")
    node.CopyFrom(onnx.helper.make_node("Reshape", [node.input[0], "impossible"], node.output))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, 28, 27]), "impossible"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename_output, r"expected a valid ONNX graph, found: expected outputs .*digit.*found .*label"),
        (leave_out_doubt, r"expected .*doubt"),
        (reshape_wrongly, "expected a valid ONNX graph, found: "),
    ],
)
def test_graph_of_another_contract_or_that_does_not_run_is_refused(damage, message, graph, classifier, data):
    model = onnx.load_from_string(graph)
    damage(model)
    with pytest.raises(TrainError, match=message):
        compare(model.SerializeToString(), data.test.images, predict(classifier, data.test.images))


def test_graph_with_one_weight_changed_and_content_that_is_no_graph_are_refused(graph, classifier, data):
    for content, message in (
        (with_one_weight_changed(graph), "does not predict as"),
        (b"no ONNX", "a valid ONNX graph"),
    ):
        with pytest.raises(TrainError, match=message):
            compare(content, data.test.images, predict(classifier, data.test.images))
