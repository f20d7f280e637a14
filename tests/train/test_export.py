"""Export and verification: the graph follows the contract and predicts as the network; any deviation is refused."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from model import contract
from model.networks import Model_3
from tests.train.graphs import with_one_weight_changed
from train import TrainError, export, verify
from train.checkpoint import Epoch, settings
from train.data import load
from train.files import sha256, to_json
from train.nondigits import KINDS
from train.progression import PROGRESSION
from train.trainings import Trained

ROOT = Path(__file__).parents[2]
# One pytest worker, so that the graph is exported once.
pytestmark = pytest.mark.xdist_group("export")
PROVENANCE = {"source_revision": "then", "versions": {}, "device": "CPU"}
EPOCH = Epoch(1, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 1.0)


@pytest.fixture(scope="module")
def data(subset):
    return load(subset)


@pytest.fixture
def release(trained, tmp_path):
    """Return a copy of an export that a test may modify."""
    for path in (trained / "release").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_graph_keeps_the_contract(graph):
    session = onnxruntime.InferenceSession(graph)
    described = [(value.name, value.type, value.shape) for value in (*session.get_inputs(), *session.get_outputs())]
    assert described == [  # written out, because clients rely on it
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
    again = verify.load_classifier(Model_3(), verify.weights(classifier), Path("weights"))
    images = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    assert all(map(torch.equal, again(images), classifier(images)))


def test_manifest_describes_the_export(trained, data):
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
    found = onnxruntime.InferenceSession(graph).run(["doubt"], {"image": data.validation.images.numpy()})[0]
    assert doubt["validation_doubted"] == np.mean(found > doubt["threshold"]) == 1 / 150


def test_graph_metadata_equal_the_manifest(trained):
    manifest = json.loads((trained / "release" / "manifest.json").read_text())
    properties = onnxruntime.InferenceSession(trained / "release" / "digits.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(properties.pop("settings")) == manifest["settings"]
    names = ("model", "parameters", "epochs", "seed", "recipe", "source_revision")
    assert properties == {name: str(manifest[name]) for name in names}


def test_verify_accepts_an_export(release, data):
    assert verify.verify(release, data).parity.images == 300


def test_failed_verification_does_not_change_an_older_export(release, data, monkeypatch):
    before = contents(release)
    honest = export.to_onnx
    monkeypatch.setattr(export, "to_onnx", lambda *arguments: with_one_weight_changed(honest(*arguments)))
    with pytest.raises(TrainError):
        export.export(untrained(), data, release)
    assert contents(release) == before


def test_full_disk_does_not_change_an_older_export(release, data, monkeypatch):
    before = contents(release)
    synced = []

    def sync(descriptor):
        synced.append(descriptor)
        if len(synced) == 3:  # after the graph and the weights, before the manifest
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(TrainError, match=r"cannot write .*manifest.json: No space left on device"):
        export.export(untrained(), data, release)
    assert contents(release) == before


@pytest.mark.slow
def test_manifest_has_the_provenance_of_the_training_not_of_the_export(release, data):
    model = Trained(PROGRESSION["Model_3"], Model_3(), 7, [EPOCH], PROVENANCE)
    manifest = export.export(model, data, release).manifest
    assert (manifest.source_revision, manifest.versions, manifest.device, manifest.seed) == ("then", {}, "CPU", 7)
    assert manifest.recipe == str(PROGRESSION["Model_3"].recipe)
    assert manifest.settings == settings(PROGRESSION["Model_3"], data, 7)
    assert manifest == contract.parse_manifest((release / "manifest.json").read_bytes())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def untrained():
    return Trained(PROGRESSION["Model_3"], Model_3(), 1, [EPOCH], PROVENANCE)


def restate(folder, **stated):
    """Change the given fields of the manifest in `folder`."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, value in stated.items():
        of_object = isinstance(value, dict) and isinstance(manifest.get(name), dict)
        manifest[name] = manifest[name] | value if of_object else value
    (folder / "manifest.json").write_bytes(to_json(manifest))


def restate_graph(folder):
    """Update the hash of the graph in the manifest of `folder`."""
    restate(folder, onnx={"sha256": sha256((folder / contract.GRAPH).read_bytes())})


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"test_correct": 301}, r"expected test_correct as stated, 301, found \d+"),
        ({"parameters": 1}, r"expected parameters as stated, 1, found \d+"),
        ({"doubt": None}, r"Expected `object`, got `null` - at `\$\.doubt`"),
        ({"seed": 999}, "expected seed as stated, 999, found 1$"),
        ({"epochs": 15}, "expected epochs as stated, 15, found 2$"),
        ({"recipe": "by\nmagic"}, "expected recipe as stated, by magic, found 2 epochs of SGD"),
        ({"settings": {"recipe": {}}}, r"expected settings as stated, .*\"recipe\": {}.*, found .*learning_rate"),
        ({"source_revision": "0" * 40}, "expected source_revision as stated, 0{40}, found"),
        ({"model": "Model_9"}, "expected a model of Model_1, Model_2, Model_3, found 'Model_9'"),
        ({"seed": "1"}, r"Expected `int`, got `str` - at `\$\.seed`"),
    ],
)
def test_verify_refuses_a_manifest_with_a_false_statement(stated, message, release, data):
    restate(release, **stated)
    with pytest.raises(TrainError, match=message) as refused:
        verify.verify(release, data)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"\xff", b"[" * 100_000, b'{"seed": NaN}'])
def test_verify_refuses_an_invalid_manifest(content, release, data):
    (release / "manifest.json").write_bytes(content)
    with pytest.raises(TrainError, match=r"manifest.json: expected a manifest, found: "):
        verify.verify(release, data)


def test_verify_refuses_another_data_set(release, tiny):
    with pytest.raises(TrainError, match="export, subset, found tiny, which differs in t10k-images"):
        verify.verify(release, load(tiny))


def test_verify_refuses_a_graph_with_external_data(release, data, monkeypatch):
    """Even if the file with the data is in the same folder."""
    model = onnx.load(release / "digits.onnx")
    onnx.save_model(model, release / "digits.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert (release / "weights").stat().st_size > 1_000
    restate_graph(release)
    monkeypatch.chdir(release)
    with pytest.raises(TrainError, match="expected a valid ONNX graph, found: "):
        verify.verify(release, data)


def test_verify_refuses_a_graph_with_another_hash(release, data):
    graph = release / "digits.onnx"
    graph.write_bytes(with_one_weight_changed(graph.read_bytes()))
    with pytest.raises(TrainError, match=r"expected onnx.sha256 as stated, \w+, found \w+"):
        verify.verify(release, data)


def test_verify_refuses_a_forged_graph_by_its_predictions(release, data):
    graph = release / "digits.onnx"
    graph.write_bytes(with_one_weight_changed(graph.read_bytes()))
    restate_graph(release)
    with pytest.raises(TrainError, match="does not predict as the network"):
        verify.verify(release, data)


@pytest.mark.parametrize("name", ["digits.onnx", "model.safetensors", "manifest.json"])
def test_verify_names_a_missing_file(name, release, data):
    (release / name).unlink()
    with pytest.raises(TrainError, match=f"cannot read .*{name}"):
        verify.verify(release, data)
