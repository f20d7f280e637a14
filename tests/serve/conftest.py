"""Fixtures: the Flask application, and gunicorn processes on the loopback interface."""

import http.client
import json
import operator
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from flask.testing import FlaskClient
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from serve.app import create_app
from serve.config import Config
from tests.polling import PATIENCE, answers, wait
from tests.processes import children
from train.paths import ROOT

RAW = {"Content-Type": "application/octet-stream"}
IN_FLIGHT = "digits_requests_in_flight", ()


def free_port() -> int:
    """Return a port on which nothing listens. Linux gives clients other, higher ports, so no client takes this port."""
    while True:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def inference(images: NDArray[np.uint8]) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "datatype": "UINT8", "shape": images.shape, "data": images.ravel().tolist()}]}


class Service:
    """A gunicorn process with the given configuration, ready for requests.

    The process logs to the file or pipe `log`. If `log` is None, the standard error of the process is closed.
    """

    def __init__(self, log: Path | None, **environment: object) -> None:
        self.port = free_port()
        host = str(environment.get("HOST", "127.0.0.1")).strip("[]")
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        self.log = log or Path(os.devnull)
        variables = {name: str(value) for name, value in environment.items()}
        command = ["sh", "-c", f'exec "$0" -m serve {"" if log else "2>&-"}', sys.executable]
        with self.log.open("wb", buffering=0) as file:
            environ = {"PATH": os.environ["PATH"], "PORT": str(self.port), **variables}
            # The process has its own process group, so that end() can kill its workers, too.
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environ, stdout=file, stderr=file, start_new_session=True
            )
        try:
            self.wait(self._answers)
        except BaseException:
            self.end()
            raise

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.said()
        return answers(self.url)

    def wait(self, condition: Callable[[], Any]) -> Any:
        return wait(condition, PATIENCE, self.said)

    def said(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""  # reading /dev/full would never end

    def workers(self) -> list[int]:
        return children(self.process.pid)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def wait_for_lines(self, field: str, part: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until `count` log lines contain `part` in the field `field`, and return these lines."""

        def found() -> list[dict[str, Any]]:
            lines = [line for line in self.lines() if part in line.get(field, "")]
            return lines if len(lines) >= count else []

        return self.wait(found)

    def predict(self, images: NDArray[np.uint8], query: str = "") -> requests.Response:
        return requests.post(f"{self.url}/predict{query}", images.tobytes(), headers=RAW, timeout=PATIENCE)

    def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Return /metrics as {(name, labels): value}."""
        text = requests.get(f"{self.url}/metrics", timeout=PATIENCE).text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}

    def reload(self) -> None:
        """Send SIGHUP, and wait until all workers have been replaced by as many new workers."""
        before = self.workers()
        self.process.send_signal(signal.SIGHUP)
        self.wait(lambda: len(self.workers()) == len(before) and not set(before) & set(self.workers()))

    def kill_worker(self, index: int = 0) -> None:
        """Kill a worker as the OOM killer does, and wait until another worker has replaced it."""
        before = self.workers()
        os.kill(before[index], signal.SIGKILL)
        self.wait(lambda: len(self.workers()) == len(before) and before[index] not in self.workers())

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def exchange(self, sent: bytes) -> bytes:
        """Send `sent` and end the input. Return all that the service sends until it closes the connection."""
        with self.connect() as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            return connection.makefile("rb").read()

    def stop(self) -> int:
        """Stop the service with SIGTERM, as an operator does; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        """Stop the service with SIGINT; kill it if it has not ended after 10 seconds."""
        self.process.send_signal(signal.SIGINT)  # on SIGINT, the service does not wait for open connections
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Load:
    """Eight clients that send one request after another on kept-alive connections."""

    def __init__(self, port, images, name=lambda answer, body: body["model"]["version"]):
        """Count the answers of the service at `port` by status and by `name`, a function of answer and body."""
        self.port, self.body, self.name = port, images[:1].tobytes(), name
        self.answers: Counter[tuple[int, str]] = Counter()
        self.answered = [0] * 8  # number of answers to each client
        self.failures: list[tuple[int, str, bool]] = []  # client, exception, whether the connection was already used
        self.stopping = threading.Event()
        self.pool = ThreadPoolExecutor(8)

    def __enter__(self):
        self.running = [self.pool.submit(self._request, client) for client in range(8)]
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for client in self.running:
            client.result(PATIENCE)

    def wait_for_responses(self, count=25):
        """Wait until every client has received `count` more responses."""
        goals = [answered + count for answered in self.answered]
        wait(lambda: all(map(operator.ge, self.answered, goals)), PATIENCE, lambda: f"only {self.answered}")

    def _request(self, client):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        while not self.stopping.is_set():
            used = connection.sock is not None
            try:
                connection.request("POST", "/predict", self.body, RAW)
                answer = connection.getresponse()
                self.answers[answer.status, self.name(answer, json.loads(answer.read()))] += 1
                self.answered[client] += 1
            except (OSError, http.client.HTTPException) as error:
                self.failures.append((client, type(error).__name__, used))
                connection.close()  # the next request opens a new connection
                time.sleep(0.02)
        connection.close()


@pytest.fixture(scope="session", autouse=True)
def _patient() -> Iterator[None]:
    """Let the decoder pools of this process wait longer than in production, because a busy machine is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("serve.pictures.decoder_pool.TIMEOUT", 4 * PATIENCE)
        yield


@pytest.fixture(scope="session")
def service(tmp_path_factory) -> Iterator[Service]:
    """Return a service with the default configuration, shared by all tests of a pytest process."""
    service = Service(tmp_path_factory.mktemp("service") / "log")
    yield service
    try:
        assert service.stop() == 0
    finally:
        service.end()


def _starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Service]]:
    """Return a function that starts a service with a configuration.

    Every started service ends after the test (fixture `start`) or after the module (fixture `start_for_module`).
    """
    folder, services = tmp_path_factory.mktemp("services"), []

    def start(**environment: object) -> Service:
        services.append(Service(folder / f"log{len(services)}", **environment))
        return services[-1]

    yield start
    for service in services:
        service.end()


start = pytest.fixture(_starting)
start_for_module = pytest.fixture(_starting, scope="module")


@pytest.fixture(scope="session")
def client() -> FlaskClient:
    """Return a client of an application with limits of 5 images and 100,000 bytes per request."""
    return create_app(Config(max_batch=5, max_body_bytes=100_000)).test_client()
