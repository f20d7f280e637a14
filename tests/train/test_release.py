"""Release: a verified export that reaches the target accuracy is copied with a model card."""

import shutil

import pytest

from model import contract
from train import TrainError
from train.__main__ import main
from train.run import release


def test_export_is_copied_with_a_model_card_by_force(trained, subset, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(release.__kwdefaults__, "destination", tmp_path)
    options = ["release", "--out", str(trained), "--data", str(subset)]
    manifest = contract.parse_manifest((trained / "release" / "manifest.json").read_bytes())
    assert main(options) == 1
    found = f"expected 99.40 % or more on the test set, found {100 * manifest.test_accuracy:.2f} %: use --force"
    assert found in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([*options, "--force"]) == 0
    for name in ("digits.onnx", "model.safetensors", "manifest.json"):
        assert (tmp_path / name).read_bytes() == (trained / "release" / name).read_bytes()
    card = (tmp_path / "README.md").read_text()
    assert f"# {manifest.model}: handwritten digit classifier, {manifest.parameters:,} parameters" in card
    assert f"{100 * manifest.test_accuracy:.2f} % ({manifest.test_correct} of 300)" in card
    assert "Input `image`: uint8 [batch, 28, 28]" in card
    assert "Outputs `probabilities`: float32 [batch, 10], `digit`: int64 [batch], `doubt`: float32 [batch]." in card
    assert f"Seed {manifest.seed};\n{manifest.recipe}. Source revision {manifest.source_revision}." in card
    assert "| 99.90 % |" in card
    assert f"if `doubt` is above {manifest.doubt.threshold:.4f}" in card


def test_export_that_does_not_verify_is_not_released(trained, subset, tiny, tmp_path):
    shutil.copytree(trained / "release", tmp_path / "release")
    (tmp_path / "release" / "digits.onnx").write_bytes(b"another graph")
    for out, data, message in (
        (tmp_path, subset, r"expected onnx.sha256 \w+, as the manifest states, found"),
        (trained, tiny, "expected the data set of the export, subset, found tiny"),
    ):
        with pytest.raises(TrainError, match=message):
            release(out, data_directory=data, destination=tmp_path / "to", force=True)
        assert not (tmp_path / "to").exists()
