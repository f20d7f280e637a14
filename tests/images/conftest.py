"""Fixtures: the built images, and containers that are removed after each test."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.polling import answers, wait

Docker = Callable[..., str]


class Container:
    """A running container of the image `serve`."""

    def __init__(self, docker: Docker, name: str, url: str | None) -> None:
        self.docker, self.name, self.url = docker, name, url
        self.port = url and int(url.rpartition(":")[2])

    def inspect(self, template: str) -> str:
        return self.docker("inspect", "--format", template, self.name)

    def workers(self) -> int:
        """Return the number of workers, the child processes of the container's main process."""
        parents = [line.split()[0] for line in self.docker("top", self.name, "-o", "ppid,pid").splitlines()[1:]]
        return parents.count(self.inspect("{{.State.Pid}}"))

    def wait(self, condition: Callable[[], Any], seconds: float = 30) -> Any:
        return wait(condition, seconds, lambda: self.docker("logs", self.name))


@pytest.fixture(scope="session")
def docker() -> Docker:
    """Return a function that runs `docker` and returns its output; `make images` must have built the images."""
    if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no container engine: the image tests were not run")

    def docker(*arguments: object, check: bool = True) -> str:
        command = ["docker", *map(str, arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}"
        return done.stdout.strip()

    return docker


@pytest.fixture
def serve(docker) -> Iterator[Callable[..., Container]]:
    """Return a function that starts a container of `serve` with options and waits until the service is ready."""
    names = []

    def run(*options: object, network: bool = True) -> Container:
        names.append(f"test-serve-{os.getpid()}-{time.monotonic_ns()}")
        published = ["--publish", "127.0.0.1::8000"] if network else ["--network", "none"]
        docker("run", "--detach", "--health-interval=1s", "--name", names[-1], *published, *options, "serve")
        url = f"http://{docker('port', names[-1], 8000)}" if network else None
        container = Container(docker, names[-1], url)
        if network:
            container.wait(lambda: answers(url))
        return container

    yield run
    for name in names:
        docker("rm", "--force", name)


@pytest.fixture(scope="session")
def mounted(docker, tmp_path_factory, subset) -> Path:
    """Return a folder owned by user 12345, in which the image `train` trained Model_3 for one epoch on the subset."""
    folder = tmp_path_factory.mktemp("mounted") / "artifacts"
    folder.mkdir()
    os.chown(folder, 12345, 12346)
    volumes = ["--volume", f"{folder}:/artifacts", "--volume", f"{subset}:/data:ro"]
    options = ["--models", "Model_3", "--epochs", "1", "--data", "/data"]
    said = docker("run", "--rm", "--network", "none", *volumes, "train", *options)
    assert "Device: CPU" in said
    assert "no GPU is used" in said
    assert "Verified on 300 test images" in said
    return folder
