import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest

from serve.predictor import Predictor
from serve.release import ModelError, read, verify
from tests.serve.releases import make_graph, put_graph
from train.paths import RELEASE


@pytest.fixture
def folder(tmp_path):
    """Return a copy of the shipped release that a test may damage."""
    return shutil.copytree(RELEASE, tmp_path / "release")


def test_the_shipped_release_verifies():
    release = verify(RELEASE)
    assert release.manifest.model == "Model_3"
    assert release.version == hashlib.sha256(release.graph).hexdigest()[:12]


def test_a_release_verifies_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert verify(RELEASE).version == read(RELEASE).version


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "Input data was truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"model": "Model_3"}', "Object missing required field `parameters`"),
        (b'{"model": 3}', r"Expected `str`, got `int` - at `\$.model`"),
        (b'\xff"', "JSON is malformed: "),
        (b'{"model": "\\ud800"}', "Input data was truncated"),
    ],
)
def test_a_manifest_of_another_form_is_refused(folder, content, found):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(
        ModelError, match=f"manifest.json: expected the manifest of a verified export, found: .*{found}"
    ):
        read(folder)


@pytest.mark.parametrize("file", ["../digits.onnx", "a\0b"])
def test_a_manifest_that_points_elsewhere_is_refused(folder, file):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["onnx"]["file"] = file
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"expected onnx.file to be a file beside it"):
        read(folder)


def test_a_foreign_graph_is_refused(folder):
    pixels = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, ["batch", 784])
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["batch", 784])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["pixels"], ["out"])], "foreign", [pixels], [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    put_graph(folder, model.SerializeToString())
    with pytest.raises(ModelError, match=r"expected inputs \[\('image', .*found \[\('pixels'"):
        verify(folder)


def test_a_graph_that_loads_but_does_not_run_is_refused(folder):
    put_graph(folder, make_graph(pixels=10_000))
    with pytest.raises(ModelError, match="expected a graph that runs, found"):
        verify(folder)


def test_a_graph_or_a_manifest_without_doubt_is_refused(folder):
    put_graph(folder, make_graph(doubt=False))
    with pytest.raises(ModelError, match=r"digits.onnx: expected outputs .*'doubt'.*, found \[[^d]*digit[^d]*\]$"):
        verify(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"doubt": None}))
    with pytest.raises(ModelError, match=r"manifest.json: expected the manifest of a verified export, found: .*doubt"):
        verify(folder)


@pytest.mark.parametrize("count", [1, 99, 100, 101, 1000])
def test_predictions_do_not_depend_on_the_batch(images, count):
    release = read(RELEASE)
    predictor = Predictor(release.graph, release.manifest.doubt.threshold)
    whole = predictor.predict(images[:1000])
    part = predictor.predict(images[:count])
    assert np.array_equal(part.digits, whole.digits[:count])
    assert np.allclose(part.probabilities, whole.probabilities[:count], atol=1e-5)
    assert np.allclose(part.doubts, whole.doubts[:count], atol=1e-3)
    assert part.probabilities.shape == (count, 10)
    assert part.doubtful.shape == (count,)
