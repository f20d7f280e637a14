"""The version is that of pyproject.toml wherever it stands."""

import json
import re

import yaml

from model.version import VERSION
from serve.app import create_app
from serve.config import RELEASE, Config
from tests.processes import make
from train.paths import ROOT


def test_the_service_and_its_document_state_the_version():
    assert create_app(Config()).test_client().get("/v2").json["version"] == VERSION
    assert json.loads((ROOT / "serve/openapi.json").read_text())["info"]["version"] == VERSION


def test_the_images_and_the_manifests_have_the_version():
    assert re.findall(r"--build-arg VERSION=(\S+)", make("-n", "images").stdout) == [VERSION] * 2
    for folder in ("deploy/kubernetes", "deploy/kubernetes/kserve"):
        (image,) = yaml.safe_load((ROOT / folder / "kustomization.yaml").read_text())["images"]
        assert image["newTag"] == VERSION


def test_the_changelog_and_the_model_card_state_the_version():
    assert re.findall(r"^## \[(\d\S*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M)[0] == VERSION
    assert f"version {VERSION} " in " ".join((RELEASE / "README.md").read_text().split())
