"""A release that is missing, altered or of another form is refused, and the error says which file and why."""

import hashlib
import json
import shutil

import numpy as np
import pytest

from serve.predictor import Predictor
from serve.release import ModelError, read, verify
from tests.serve.releases import make_graph, put_graph
from train.paths import RELEASE


def test_the_shipped_release_verifies_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    release = verify(RELEASE)
    assert release.manifest.model == "Model_3"
    assert release.version == hashlib.sha256(release.graph).hexdigest()[:12]


def manifest(content):
    return lambda folder: (folder / "manifest.json").write_bytes(content)


def with_file(name):
    shipped = json.loads((RELEASE / "manifest.json").read_text())
    return manifest(json.dumps(shipped | {"onnx": shipped["onnx"] | {"file": name}}).encode())


FORM = "manifest.json: expected the manifest of a verified export, found: "


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (shutil.rmtree, "manifest.json: expected a file of a verified export, found: No such file"),
        (lambda folder: (folder / "digits.onnx").unlink(), "digits.onnx: expected a file of a verified export"),
        (lambda folder: (folder / "digits.onnx").write_bytes(b"altered"), "digits.onnx: expected SHA-256 [0-9a-f]{64}"),
        (manifest(b""), f"{FORM}Input data was truncated"),
        (manifest(b'{"model": "Model_3"}'), f"{FORM}Object missing required field `parameters`"),
        (manifest(b'{"model": 3}'), rf"{FORM}Expected `str`, got `int` - at `\$.model`"),
        (manifest(b'{"model": "\\ud800"}'), f"{FORM}Input data was truncated"),
        (with_file("../digits.onnx"), "manifest.json: expected onnx.file to name a file in the same folder"),
        (with_file("a\0b"), "manifest.json: expected onnx.file to name a file in the same folder"),
        (lambda folder: put_graph(folder, b"no graph"), "digits.onnx: expected an ONNX graph, found"),
        (
            lambda folder: put_graph(folder, make_graph(name="pixels")),
            r"expected inputs \[\('image', .*found \[\('pixels'",
        ),
        (lambda folder: put_graph(folder, make_graph(pixels=10_000)), "expected a graph that runs, found"),
        (
            lambda folder: put_graph(folder, make_graph(doubt=False)),
            r"expected outputs .*'doubt'.*, found \[[^d]*digit[^d]*\]$",
        ),
    ],
    ids=range(13),
)
def test_a_damaged_release_is_refused(tmp_path, damage, found):
    folder = shutil.copytree(RELEASE, tmp_path / "release")
    damage(folder)
    with pytest.raises(ModelError, match=found) as error:
        verify(folder)
    assert str(error.value).startswith(f"{folder}/")


def test_predictions_do_not_depend_on_the_batch(images):
    release = read(RELEASE)
    predictor = Predictor(release.graph, release.manifest.doubt.threshold)
    whole = predictor.predict(images[:1000])
    for count in (1, 99, 101):
        part = predictor.predict(images[:count])
        assert np.array_equal(part.digits, whole.digits[:count])
        assert np.allclose(part.probabilities, whole.probabilities[:count], atol=1e-5)
        assert np.allclose(part.doubts, whole.doubts[:count], atol=1e-3)
