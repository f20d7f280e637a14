"""Tests of the container images, which `make images` builds; `make test-images` runs the tests."""

import json
import os
import shutil
import subprocess
from io import BytesIO

import numpy as np
import pytest
import requests
from PIL import Image

from model.classifier import predict
from model.networks import Model_3
from serve.pictures.decode import FORMATS
from tests.serve.conftest import RAW, Load
from train.export import load_classifier
from train.paths import RELEASE, ROOT

pytestmark = pytest.mark.images

BASE = "python:3.13-slim-trixie"
HARDENED = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
HARDENED += ["--memory=512m", "--cpus=1"]


def predict_digits(container, images):
    answer = requests.post(f"{container.url}/predict", images.tobytes(), headers=RAW)
    return [prediction["digit"] for prediction in answer.json()["predictions"]]


def line_of_failure(*options):
    """Run a container that must fail. Return the only line of its standard error that is not JSON."""
    ended = subprocess.run(["docker", "run", "--rm", *options], capture_output=True, text=True, check=False)
    (line,) = [line for line in ended.stderr.splitlines() if not line.startswith("{")]
    assert ended.returncode == 1, ended.stderr
    return line


def test_sighup_serves_the_new_model_whose_labels_equal_pytorch_s(docker, serve, mounted, mnist, tmp_path):
    folder, images = shutil.copytree(RELEASE, tmp_path / "release"), mnist.test.images[:1_000]
    container = serve(*HARDENED, "--volume", f"{folder}:/model:ro", "--env", "MODEL_DIR=/model")
    classifier = load_classifier(Model_3(), (mounted / "release" / "model.safetensors").read_bytes(), mounted)
    labels = predict(classifier, images)[1].tolist()
    assert predict_digits(container, images.numpy()) != labels  # the model that ships predicts other labels
    shutil.copytree(mounted / "release", folder, dirs_exist_ok=True)
    docker("kill", "--signal", "HUP", container.name)
    container.wait(lambda: predict_digits(container, images.numpy()) == labels)


def test_the_results_belong_to_the_owner_of_the_mounted_folder(mounted):
    left = [path for path in mounted.rglob("*") if path.is_file()]
    assert {"digits.onnx", "model.safetensors", "manifest.json", "report.md"} <= {path.name for path in left}
    assert {(path.stat().st_uid, path.stat().st_gid) for path in left} == {(12345, 12346)}
    revision = json.loads((mounted / "release" / "manifest.json").read_text())["source_revision"]
    assert len(revision) >= 40


@pytest.mark.parametrize(
    ("options", "arguments", "word"),
    [
        (["--user", "23456"], [], "cannot write artifacts/.lock: Permission denied"),
        ([], ["--device", "cuda"], "--device cuda: expected a CUDA GPU, found none"),
        (["--memory", "600m"], [], "expected at least"),
    ],
)
def test_the_train_image_reports_a_missing_requirement_in_one_line(docker, tmp_path, options, arguments, word):
    assert word in line_of_failure(*options, "--volume", f"{tmp_path}:/artifacts", "train", *arguments)


def test_the_train_image_trains_seeds_as_the_given_user_on_the_threads_of_its_cpu_limit(docker, tmp_path, subset):
    os.chown(tmp_path, 23456, 23456)
    volumes = ["--volume", f"{tmp_path}:/artifacts", "--volume", f"{subset}:/data:ro"]
    options = ["--model", "Model_2", "--seeds", "2", "--epochs", "1", "--data", "/data"]
    said = docker("run", "--rm", "--user", "23456:23456", "--cpus", "1", *volumes, "train", "consistency", *options)
    assert "(mean ± standard deviation, n = 2 seeds)" in said
    page = tmp_path / "consistency" / "consistency.md"
    assert ", 1 thread. " in page.read_text()
    assert page.stat().st_uid == 23456


def test_the_shipped_service(serve, images, labels):
    container = serve(*HARDENED)
    found = np.concatenate([predict_digits(container, images[i : i + 1_000]) for i in range(0, 10_000, 1_000)])
    assert int((found == labels).sum()) == json.loads((RELEASE / "manifest.json").read_text())["test_correct"]
    assert container.workers() == 1
    container.wait(lambda: container.inspect("{{.State.Health.Status}}") == "healthy")


def test_the_shipped_service_reads_every_format_of_picture(serve):
    container = serve(*HARDENED)
    seven = Image.open(ROOT / "docs" / "seven.png").convert("RGB").resize((600, 600))
    for name in FORMATS:
        content = BytesIO()
        seven.save(content, name)
        answer = requests.post(f"{container.url}/predict", files={"image": content.getvalue()})
        assert answer.json()["predictions"][0]["digit"] == 7, name


def test_as_many_workers_as_the_cpu_limit_has_cores(serve):
    assert serve("--cpus", "2").workers() == 2


def test_a_service_without_a_network_predicts_and_sends_nothing(docker, serve):
    container = serve(*HARDENED, network=False)
    container.wait(lambda: '"serving"' in docker("logs", container.name))
    code = """
import socket, urllib.request as r
raw = {"Content-Type": "application/octet-stream"}
request = r.Request("http://127.0.0.1:8000/predict?preprocess=none", bytes(784), raw)
def sent():
    names, values = [line.split() for line in open("/proc/net/snmp") if line.startswith("Ip:")]
    return dict(zip(names, values))["OutNoRoutes"]
print(r.urlopen(request).status, sent())
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect_ex(("192.0.2.1", 53))
print(sent())
"""
    assert docker("exec", container.name, "python", "-c", code).split() == ["200", "0", "1"]


def test_sigterm_ends_with_code_0_within_the_grace_period_and_loses_nothing(docker, serve, images):
    container = serve(*HARDENED)
    with Load(container.port, images) as load:
        load.wait_for_responses()
        docker("stop", "-t", "35", container.name)  # after 35 s, as documented, Docker kills the container (code 137)
    assert container.inspect("{{.State.ExitCode}}") == "0"
    assert {status for status, _ in load.answers} == {200}
    assert [failure for failure in load.failures if failure[2]] == []


def test_a_corrupt_model_prevents_the_start_with_one_line(docker, tmp_path):
    folder = shutil.copytree(RELEASE, tmp_path / "release")
    (folder / "digits.onnx").write_bytes(b"corrupt")
    line = line_of_failure("--volume", f"{folder}:/model:ro", "--env", "MODEL_DIR=/model", "serve")
    assert line.startswith("serve: /model/digits.onnx: expected SHA-256 ")


def shell(docker, image, script, *options):
    return docker("run", "--rm", "--entrypoint", "sh", *options, image, "-c", script).splitlines()


@pytest.mark.parametrize("image", ["serve", "serve-proxy"])
def test_the_user_is_numeric_and_can_write_to_tmp_only(docker, image):
    assert docker("image", "inspect", "--format", "{{.Config.User}}", image) == "10001:10001"
    found = shell(docker, image, r"find / -xdev \( -type f -o -type d \) -writable 2>/dev/null; true")
    assert found == ["/tmp"]


@pytest.mark.parametrize("image", ["serve", "train"])
def test_the_image_contains_no_secrets_and_no_git_history(docker, image):
    secrets = (".git", ".env", "id_rsa*", "*.key", ".netrc", "pip.conf", ".docker")
    names = " -o ".join(f"-name '{name}'" for name in secrets)
    script = f"find / -xdev \\( {names} \\) -not -path '/usr/*' -not -path '/opt/venv/lib/*'"
    assert shell(docker, image, script, "--user", "0") == []
    assert shell(docker, image, f"touch /tmp/id_rsa.pub; {script}", "--user", "0") == ["/tmp/id_rsa.pub"]
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert not any(word in history.lower() for word in ("token", "password", "secret"))


@pytest.mark.parametrize("image", ["serve", "train"])
def test_labels_name_the_image_s_origin(docker, image):
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", image))
    stated = {name.removeprefix("org.opencontainers.image."): value for name, value in labels.items()}
    assert stated["licenses"] == "MIT"
    assert len(stated["revision"].removesuffix("-dirty")) == 40
    assert stated["version"] != "0"
    assert stated["source"]


def test_the_serve_image_is_small(docker):
    size, base = (int(docker("image", "inspect", "--format", "{{.Size}}", image)) for image in ("serve", BASE))
    assert size - base <= 200 * 2**20
