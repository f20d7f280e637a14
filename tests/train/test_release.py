"""A release is a verified export with its model card."""

import json

import pytest

from train.errors import VerificationError
from train.release import release


def test_promotes_the_export_with_a_model_card(trained, subset, tmp_path):
    release(trained / "release", data_directory=subset, destination=tmp_path / "release")
    for name in ("digits.onnx", "model.safetensors", "manifest.json"):
        assert (tmp_path / "release" / name).read_bytes() == (trained / "release" / name).read_bytes()
    manifest = json.loads((trained / "release" / "manifest.json").read_text())
    card = (tmp_path / "release" / "README.md").read_text()
    assert f"# {manifest['model']}: handwritten digits, {manifest['parameters']:,} parameters" in card
    assert f"{100 * manifest['test_accuracy']:.2f} % ({manifest['test_correct']} of 300)" in card
    assert "over other seeds has not been measured" in card  # that of docs/ is of another data set


def test_export_that_does_not_verify_is_not_released(trained, subset, tmp_path):
    for path in (trained / "release").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "digits.onnx").write_bytes(b"another graph")
    with pytest.raises(VerificationError, match=r"expected onnx.sha256 as stated"):
        release(tmp_path, data_directory=subset, destination=tmp_path / "release")
    assert not (tmp_path / "release").exists()
