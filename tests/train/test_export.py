"""Export and verification: the graph has the contract's form and the network's predictions, or it is refused."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from model import contract
from model.classifier import DigitClassifier, predict
from model.networks import Model_3
from train import TrainError, export
from train.checkpoint import Epoch, settings
from train.data import load
from train.doubt import KINDS
from train.export import compare, load_classifier, verify
from train.files import sha256, to_json, write_together
from train.progression import PROGRESSION
from train.trainings import Trained

ROOT = Path(__file__).parents[2]
# All tests of this file run in one pytest worker, so that the graph is exported only once.
pytestmark = pytest.mark.xdist_group("export")
OFF, ALL = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
PROVENANCE = {"source_revision": "then", "versions": {}, "device": "CPU"}


@pytest.fixture(scope="module")
def data(subset):
    return load(subset)


@pytest.fixture(scope="module")
def classifier():
    """Return an untrained classifier."""
    torch.manual_seed(0)
    return DigitClassifier(Model_3()).eval()


@pytest.fixture(scope="module")
def graph(classifier):
    return export.to_onnx(classifier, {"model": "Model_3"})


@pytest.fixture
def release(trained, tmp_path):
    """Return a copy of an export that a test may modify."""
    return Path(shutil.copytree(trained / "release", tmp_path / "release"))


def untrained():
    return Trained(PROGRESSION["Model_3"], Model_3(), 7, [Epoch(1, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 1.0)], PROVENANCE)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def with_one_weight_changed(graph):
    """Return `graph` with one weight of its first convolution changed by 0.5."""
    model = onnx.load_from_string(graph)
    tensor = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    array = numpy_helper.to_array(tensor).copy()
    array.flat[0] += 0.5
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model.SerializeToString()


def test_graph_keeps_the_contract(graph):
    session = onnxruntime.InferenceSession(graph)
    described = [(value.name, value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())]
    assert described == [  # written out, because clients rely on these values
        ("image", "tensor(uint8)", ["batch", 28, 28]),
        ("probabilities", "tensor(float)", ["batch", 10]),
        ("digit", "tensor(int64)", ["batch"]),
        ("doubt", "tensor(float)", ["batch"]),
    ]
    assert [(opset.domain, opset.version) for opset in onnx.load_from_string(graph).opset_import] == [("", 20)]
    assert session.get_modelmeta().custom_metadata_map == {"model": "Model_3"}


def test_graph_is_one_file_without_information_about_the_machine(graph):
    assert not any(tensor.external_data for tensor in onnx.load_from_string(graph).graph.initializer)
    for trace in (str(ROOT), str(Path(torch.__file__).parent), str(Path.home()) + "/", ".py", "stack_trace"):
        assert trace.encode() not in graph, trace


def test_weights_include_the_doubt_head(classifier):
    again = load_classifier(Model_3(), export.save_weights(classifier), Path("weights"))
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    assert all(map(torch.equal, again(images), classifier(images)))


def test_manifest_and_graph_describe_the_export(trained, data):
    manifest = json.loads((trained / "release" / "manifest.json").read_text())
    graph = (trained / "release" / manifest["onnx"]["file"]).read_bytes()
    checkpoint = json.loads((trained / manifest["model"] / "checkpoint.json").read_text())
    last = checkpoint["history"][-1]
    assert manifest["onnx"] == {"file": "digits.onnx", "sha256": sha256(graph), "opset": 20, "bytes": len(graph)}
    assert (manifest["epochs"], manifest["seed"]) == (2, 1)
    assert manifest["validation_accuracy"] == last["validation_accuracy"]
    assert manifest["test_accuracy"] == pytest.approx(last["test_accuracy"])
    assert manifest["test_correct"] == round(300 * last["test_accuracy"])
    assert manifest["test_total"] == manifest["parity"]["images"] == 300
    assert manifest["data"] == {"name": "subset", "sha256": data.sha256}
    assert manifest["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert manifest["settings"] == checkpoint["settings"]
    doubt = manifest["doubt"]
    assert set(doubt["caught"]) == set(KINDS)
    assert doubt["parameters"] > 0
    session = onnxruntime.InferenceSession(graph)
    found = session.run(["doubt"], {"image": data.validation.images.numpy()})[0]
    assert doubt["validation_doubted"] == np.mean(found > doubt["threshold"]) == 1 / 150
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties.pop("settings")) == manifest["settings"]
    names = ("model", "parameters", "epochs", "seed", "recipe", "source_revision")
    assert properties == {name: str(manifest[name]) for name in names}


def test_failed_verification_does_not_change_an_older_export(release, data, monkeypatch):
    before = contents(release)
    honest = export.to_onnx
    monkeypatch.setattr(export, "to_onnx", lambda *arguments: with_one_weight_changed(honest(*arguments)))
    with pytest.raises(TrainError, match="does not predict as the network"):
        export.export(untrained(), data, release)
    assert contents(release) == before


@pytest.mark.slow
def test_full_disk_does_not_change_an_older_export(release, data, monkeypatch):
    before = contents(release)
    synced = []

    def sync(descriptor):
        synced.append(descriptor)
        if len(synced) == 3:  # the third file is the manifest, after the graph and the weights
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        with pytest.raises(TrainError, match=r"cannot write .*manifest.json: No space left on device"):
            export.export(untrained(), data, release)
    assert contents(release) == before
    manifest = export.export(untrained(), data, release).manifest
    # The provenance in the manifest is that of the training, not of the export.
    assert (manifest.source_revision, manifest.versions, manifest.device, manifest.seed) == ("then", {}, "CPU", 7)
    assert manifest.recipe == str(PROGRESSION["Model_3"].recipe)
    assert manifest.settings == settings(PROGRESSION["Model_3"], data, 7)
    assert manifest == contract.parse_manifest((release / "manifest.json").read_bytes())


def restate(folder, **stated):
    """Change the given fields of the manifest in `folder`, and set its onnx.sha256 to the hash of the graph."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["onnx"]["sha256"] = sha256((folder / contract.GRAPH).read_bytes())
    for name, value in stated.items():
        manifest[name] = manifest[name] | value if isinstance(value, dict) else value
    (folder / "manifest.json").write_bytes(to_json(manifest))


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"test_correct": 301}, r"expected test_correct 301, as the manifest states, found \d+"),
        ({"parameters": 1}, r"expected parameters 1, as the manifest states, found \d+"),
        ({"doubt": None}, r"Expected `object`, got `null` - at `\$\.doubt`"),
        ({"seed": 999}, "expected seed 999, as the manifest states, found 1$"),
        ({"epochs": 15}, "expected epochs 15, as the manifest states, found 2$"),
        ({"recipe": "by\nmagic"}, "expected recipe by magic, as the manifest states, found 2 epochs of SGD"),
        ({"settings": {"recipe": {}}}, r"expected settings .*\"recipe\": {}.*, as the manifest .*learning_rate"),
        ({"source_revision": "0" * 40}, "expected source_revision 0{40}, as the manifest states, found"),
        ({"model": "Model_9"}, "expected one of the models Model_1, Model_2, Model_3, found 'Model_9'"),
        ({"onnx": {"sha256": "0"}}, r"expected onnx.sha256 0, as the manifest states, found \w+"),
        ({"weights": {"sha256": "0"}}, r"expected weights.sha256 0, as the manifest states, found \w+"),
    ],
)
def test_verify_refuses_a_manifest_with_a_false_statement(stated, message, release, data):
    assert verify(release, data).parity.images == 300
    restate(release, **stated)
    with pytest.raises(TrainError, match=message) as refused:
        verify(release, data)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"\xff", b"[" * 100_000, b'{"seed": NaN}'])
def test_verify_refuses_an_invalid_manifest(content, release, data):
    (release / "manifest.json").write_bytes(content)
    with pytest.raises(TrainError, match=r"manifest.json: expected a manifest, found: "):
        verify(release, data)


def test_verify_refuses_another_data_set(release, tiny):
    with pytest.raises(TrainError, match="export, subset, found tiny, which differs in t10k-images"):
        verify(release, load(tiny))


def test_verify_refuses_a_graph_with_external_data(release, data, monkeypatch):
    """A graph with external data is refused even if the file with its data is in the same folder."""
    model = onnx.load(release / "digits.onnx")
    onnx.save_model(model, release / "digits.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert (release / "weights").stat().st_size > 1_000
    restate(release)
    monkeypatch.chdir(release)
    with pytest.raises(TrainError, match="expected a valid ONNX graph, found: "):
        verify(release, data)


def test_verify_refuses_a_forged_graph_by_its_predictions(release, data):
    graph = release / "digits.onnx"
    graph.write_bytes(with_one_weight_changed(graph.read_bytes()))
    restate(release)
    with pytest.raises(TrainError, match="does not predict as the network"):
        verify(release, data)


@pytest.mark.parametrize("name", ["digits.onnx", "model.safetensors", "manifest.json"])
def test_verify_names_a_missing_file(name, release, data):
    (release / name).unlink()
    with pytest.raises(TrainError, match=f"cannot read .*{name}"):
        verify(release, data)


@pytest.fixture
def compare_with(graph, classifier, data, monkeypatch):
    """Return a function that compares the graph and its network; `error` changes the outputs at one size and level."""
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
@pytest.mark.parametrize("batch_size", [1, 7, 64, 300])  # 300: with batch size 10,000, all 300 images are one batch
def test_one_wrong_digit_in_any_setting_is_refused(batch_size, level, compare_with):
    with pytest.raises(TrainError, match=r"of 300 test images differ in label \(\d+\).* image \d+: PyTorch \d, ONNX"):
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


def test_nan_as_the_probability_of_the_right_digit_is_refused(compare_with):
    def error(probabilities, digits, _):
        probabilities[-1, digits[-1]] = np.nan

    with pytest.raises(TrainError, match="1 of 300 test images differ"):
        compare_with(error, 300)


def test_the_last_file_of_a_set_is_missing_while_the_set_is_replaced(tmp_path, monkeypatch):
    write_together(tmp_path, {"a": b"1", "b": b"1"})
    monkeypatch.setattr(Path, "replace", lambda *_: os.stat(tmp_path / "none"))  # fails, as if the machine stopped here
    with pytest.raises(TrainError):
        write_together(tmp_path, {"a": b"2", "b": b"2"})
    assert not (tmp_path / "b").exists()


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
