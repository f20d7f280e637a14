"""compose.yaml: one replica behind nginx serves the model that ships; three replicas serve another model."""

import json
import os
import re
import shutil

import pytest
import requests

from tests.polling import PATIENCE, wait
from tests.serve.conftest import RAW, Load
from train.paths import RELEASE, ROOT

pytestmark = pytest.mark.images

URL = "http://127.0.0.1:8000"


@pytest.fixture
def compose(docker, tmp_path):
    """Return a function that runs `docker compose` on a copy of compose.yaml and of the model that ships."""
    shutil.copy(ROOT / "compose.yaml", tmp_path)
    # `up --wait` waits for the first health check: here after 1 second, in Dockerfile.serve after 10.
    (tmp_path / "compose.override.yaml").write_text("services: {serve: {healthcheck: {interval: 1s}}}")
    shutil.copytree(RELEASE, tmp_path / RELEASE.relative_to(ROOT))
    project = ["compose", "--project-name", f"test-{os.getpid()}", "--project-directory", tmp_path]

    def compose(*arguments):
        return docker(*project, *arguments)

    yield compose
    compose("down", "--timeout", "5")


def test_the_model_that_ships_is_served_and_the_client_s_address_is_logged(docker, compose, images):
    compose("up", "--detach", "--no-build", "--wait")
    answer = requests.post(f"{URL}/predict", images[:3].tobytes(), headers=RAW | {"X-Forwarded-For": "203.0.113.9"})
    assert [prediction["digit"] for prediction in answer.json()["predictions"]] == [7, 2, 1]
    addresses = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.Gateway}}{{end}}"
    proxy, gateway = docker("inspect", "--format", addresses, compose("ps", "--quiet", "proxy")).split()
    (line,) = [line for line in compose("logs", "--no-log-prefix", "serve").splitlines() if '"POST"' in line]
    assert gateway in line  # Docker forwards a request from this machine through the gateway
    assert proxy not in line
    assert "203.0.113.9" not in line  # the address that the client falsely claims


def test_three_replicas_of_a_model_of_your_own_share_the_requests_and_killing_one_fails_none(
    docker, compose, images, mounted, monkeypatch
):
    monkeypatch.setenv("MODEL", str(mounted / "release"))
    compose("up", "--detach", "--no-build", "--wait", "--scale", "serve=3")
    version = requests.get(f"{URL}/v2/models/digits").json()["versions"]
    assert version == [json.loads((mounted / "release" / "manifest.json").read_text())["onnx"]["sha256"][:12]]
    replicas = compose("ps", "--quiet", "serve").split()
    scrapes = [requests.get(f"{URL}/metrics").text for _ in range(40)]
    hosts = {host for text in scrapes for host in re.findall(r'^digits_model_info\{.*host="(\w+)"', text, re.M)}
    assert hosts == {container[:12] for container in replicas}  # the label `host` is the id of the replica's container
    with Load(8000, images, name=lambda answer, _: answer.getheader("X-Replica").split(", ")[-1]) as load:
        wait(lambda: len(load.answers) == 3 and min(load.answers.values()) > 20, PATIENCE, lambda: f"{load.answers}")
        docker("kill", replicas[0])
        load.wait_for_responses()
    assert load.failures == []
    assert {status for status, _ in load.answers} == {200}  # nginx repeated failed requests on another replica
