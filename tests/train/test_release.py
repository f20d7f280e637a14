"""Release: a verified export that reaches the target accuracy is copied with a model card."""

import pytest

from model import contract
from train import SettingsError, VerificationError, paths
from train.__main__ import main
from train.files import to_json
from train.progression import PROGRESSION, with_settings
from train.release import release
from train.studies import summarise


@pytest.fixture
def promote(trained, subset, tmp_path):
    """Return a function that releases the export in `trained`, which misses the target, and returns the card."""

    def promote():
        release(trained / "release", data_directory=subset, destination=tmp_path / "release", force=True)
        return (tmp_path / "release" / "README.md").read_text()

    return promote


@pytest.fixture
def manifest(trained):
    return contract.parse_manifest((trained / "release" / "manifest.json").read_bytes())


def test_copies_the_export_with_a_model_card(promote, trained, tmp_path, manifest):
    card = promote()
    for name in ("digits.onnx", "model.safetensors", "manifest.json"):
        assert (tmp_path / "release" / name).read_bytes() == (trained / "release" / name).read_bytes()
    assert f"# {manifest.model}: handwritten digit classifier, {manifest.parameters:,} parameters" in card
    assert f"{100 * manifest.test_accuracy:.2f} % ({manifest.test_correct} of 300)" in card
    assert "Input `image`: uint8 [batch, 28, 28]" in card
    assert "Outputs `probabilities`: float32 [batch, 10], `digit`: int64 [batch], `doubt`: float32 [batch]." in card
    assert f"Seed {manifest.seed};\n{manifest.recipe}. Source revision {manifest.source_revision}." in card
    assert "| 99.90 % |" in card
    assert (tmp_path / "release" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert f"if `doubt` is above {manifest.doubt.threshold:.4f}" in card
    assert "with other seeds has not been measured" in card  # docs/consistency.json is of another data set


def test_export_that_does_not_verify_is_not_released(trained, subset, tmp_path):
    for path in (trained / "release").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "digits.onnx").write_bytes(b"another graph")
    with pytest.raises(VerificationError, match=r"expected onnx.sha256 as stated"):
        release(tmp_path, data_directory=subset, destination=tmp_path / "release")
    assert not (tmp_path / "release").exists()


def test_model_below_the_target_accuracy_is_not_released_unless_forced(trained, subset, tmp_path, manifest):
    message = rf"expected 99.40 % or more on the test set, found {100 * manifest.test_accuracy:.2f} %: use --force"
    with pytest.raises(SettingsError, match=message):
        release(trained / "release", data_directory=subset, destination=tmp_path / "release")
    assert not (tmp_path / "release").exists()


def test_force_is_an_option(trained, subset, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(release.__kwdefaults__, "destination", tmp_path / "release")
    options = ["release", "--out", str(trained), "--data", str(subset)]
    assert main(options) == 1
    assert capfd.readouterr().err.count("\n") == 1
    assert main([*options, "--force"]) == 0
    assert (tmp_path / "release" / "manifest.json").exists()


def test_another_data_set_is_refused(trained, tiny, tmp_path):
    with pytest.raises(VerificationError, match="expected the data set of the export, subset, found tiny"):
        release(trained / "release", data_directory=tiny, destination=tmp_path / "release", force=True)
    assert not (tmp_path / "release").exists()


@pytest.fixture
def measure(tmp_path, monkeypatch, manifest):
    """Return a function that replaces docs/consistency.json by one with a single trial with these changes."""

    def measure(revision=manifest.source_revision, **changes):
        settings = manifest.settings | {"seed": 5} | changes
        history = [{"test_accuracy": 0.9944, "validation_accuracy": 0.99}]
        trials = [{"settings": settings, "provenance": {"source_revision": revision}, "history": history}]
        experiment = with_settings(PROGRESSION[manifest.model], [f"epochs={manifest.epochs}"])
        (tmp_path / "consistency.json").write_bytes(to_json(summarise(trials, experiment) | {"trials": trials}))
        monkeypatch.setattr(paths, "CONSISTENCY", tmp_path / "consistency.json")

    return measure


def test_card_cites_the_seeds_of_the_same_code_and_recipe(promote, measure):
    measure()
    assert "the seed (docs/consistency.md): Model_" in promote()


def test_card_names_the_source_revision_if_the_seeds_are_of_another(promote, measure):
    measure(revision="0" * 40)
    assert f"the seed (docs/consistency.md, source revision {'0' * 40}): Model_" in promote()


def test_card_cites_no_seeds_of_another_recipe(promote, measure):
    measure(recipe={"learning_rate": 0.5})
    assert "with other seeds has not been measured" in promote()


def test_rewording_a_recipe_does_not_drop_the_seeds(promote, measure, monkeypatch):
    measure()
    monkeypatch.setattr("train.progression.Recipe.__str__", lambda _: "in other words")
    assert "the seed (docs/consistency.md): Model_" in promote()
