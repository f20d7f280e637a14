"""Operation under failure: a full disk, a log that nobody reads, invalid settings, many signals."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from tests.polling import PATIENCE, answers, wait
from tests.serve.conftest import free_port
from tests.serve.test_metrics import metrics
from train.paths import RELEASE, ROOT

pytestmark = pytest.mark.slow  # each test starts its own services

RAW = {"Content-Type": "application/octet-stream"}
SERVE = [sys.executable, "-m", "serve"]


@contextmanager
def serving(url, command=SERVE, **options):
    """Run a service started with `command` until the block ends; it must exit with status 0."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, **options)
    try:
        wait(lambda: process.poll() is not None or answers(url), PATIENCE, lambda: "no answer")
        assert process.poll() is None
        yield url
    finally:
        process.terminate()
        assert process.wait(PATIENCE) == 0


@pytest.fixture
def small_disk(tmp_path):
    """Return a file system of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=False).returncode:
        pytest.skip("expected permission to mount a file system, found none")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4_096)):
            pass


def test_a_shutdown_leaves_no_files(start, tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    service = start(TMPDIR=folder)
    assert list(folder.iterdir())
    assert service.stop() == 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("given", [True, False])
def test_existing_files_are_never_deleted(tmp_path, given):
    """A given folder may contain other files; an empty variable counts as not set."""
    (tmp_path / "counter_1.db").write_bytes(b"precious")
    port = free_port()
    environ = {"PATH": os.environ["PATH"], "PORT": str(port), "PYTHONPATH": str(ROOT), "WEB_CONCURRENCY": "1"}
    environ["PROMETHEUS_MULTIPROC_DIR"] = str(tmp_path) if given else ""
    process = subprocess.Popen(SERVE, cwd=tmp_path, env=environ, stderr=subprocess.DEVNULL)
    wait(lambda: answers(f"http://127.0.0.1:{port}"), PATIENCE, lambda: "no answer")
    process.terminate()
    assert process.wait(PATIENCE) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["counter_1.db"]


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_may_have_brackets(host):
    try:
        port = free_port(socket.AF_INET6, "::1")
    except OSError:
        pytest.skip("expected IPv6, found none")
    environ = {"PATH": os.environ["PATH"], "PORT": str(port), "HOST": host, "WEB_CONCURRENCY": "1"}
    with serving(f"http://[::1]:{port}", env=environ, stderr=subprocess.DEVNULL) as url:
        assert requests.get(f"{url}/healthz", timeout=PATIENCE).ok


def test_a_disk_that_fills_up_harms_no_worker(start, small_disk, images):
    service = start(WEB_CONCURRENCY=1, TMPDIR=small_disk)
    workers = service.workers()
    fill(small_disk)
    service.signal(signal.SIGHUP)
    (line,) = service.wait(lambda: [line for line in service.lines() if "the new model is refused" in line["message"]])
    assert "No space left on device" in line["message"]
    for path in ("/healthz", "/", "/openapi.json", "/v2", "/v2/models/digits", "/nowhere", "/metrics"):
        assert requests.get(service.url + path, timeout=PATIENCE).status_code in (200, 404)
    assert requests.post(f"{service.url}/predict", images[:1].tobytes(), headers=RAW, timeout=PATIENCE).ok
    large = requests.post(f"{service.url}/predict", files={"image": bytes(1_000_000)}, timeout=PATIENCE)
    assert large.status_code == 422  # uploads need no temporary file
    assert service.workers() == workers
    os.kill(*workers, signal.SIGKILL)  # the next worker continues the files
    service.wait(lambda: service.workers() not in ([], workers) and answers(service.url))


def test_a_reload_replaces_every_worker_also_those_that_sigttin_added(start):
    service = start(WEB_CONCURRENCY=1)
    service.signal(signal.SIGTTIN)
    old = set(service.wait(lambda: len(service.workers()) == 2 and service.workers()))
    service.signal(signal.SIGHUP)
    service.wait(lambda: len(service.workers()) == 2 and not old & set(service.workers()))


def test_a_refused_model_in_a_folder_whose_name_is_not_utf_8_is_logged(start, tmp_path):
    folder = Path(shutil.copytree(RELEASE, tmp_path / "model\udcff"))
    service = start(WEB_CONCURRENCY=1, MODEL_DIR=folder)
    workers = service.workers()
    (folder / "digits.onnx").write_bytes(b"altered")
    service.signal(signal.SIGHUP)
    (line,) = service.wait(lambda: [line for line in service.lines() if "the new model is refused" in line["message"]])
    assert f"{folder}/digits.onnx: expected SHA-256" in line["message"]
    assert service.workers() == workers


def test_many_reloads_do_not_delay_the_shutdown(start):
    """Twenty SIGHUPs at once cause one reload, or two if the first has already begun."""
    service = start(WEB_CONCURRENCY=1)
    for _ in range(20):
        service.signal(signal.SIGHUP)
    service.wait(lambda: [line for line in service.lines() if line["message"] == "Handling signal: hup"])
    assert service.stop() == 0
    assert len([line for line in service.lines() if line["message"] == "Handling signal: hup"]) <= 2


def test_the_shutdown_does_not_wait_for_a_reload(start, tmp_path):
    """A stalled request keeps the old worker alive; SIGTERM is handled meanwhile."""
    folder = shutil.copytree(RELEASE, tmp_path / "model")
    service = start(WEB_CONCURRENCY=1, MODEL_DIR=folder, REQUEST_TIMEOUT=20)
    (old,) = service.workers()
    with socket.create_connection(("127.0.0.1", service.port)) as stalled:
        stalled.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n")
        flight = "digits_requests_in_flight", ()
        service.wait(lambda: metrics(service)[flight] == 2)  # the stalled request and this one
        service.signal(signal.SIGHUP)
        service.wait(lambda: set(service.workers()) - {old})
        service.signal(signal.SIGTERM)
        service.wait(lambda: [line for line in service.lines() if line["message"] == "Handling signal: term"])
        assert old in service.workers()
    assert service.process.wait(PATIENCE) == 0


@contextmanager
def service_with_stderr(stderr, redirection=""):
    port = free_port()
    environ = {"PATH": os.environ["PATH"], "PORT": str(port), "WEB_CONCURRENCY": "1"}
    command = ["sh", "-c", f'exec "$0" -m serve {redirection}', sys.executable]
    with serving(f"http://127.0.0.1:{port}", command, env=environ, stderr=stderr) as url:
        yield url


def dropped(url):
    return metrics(SimpleNamespace(url=url))["digits_log_lines_dropped_total", ()]


def test_requests_are_served_if_standard_error_is_closed(images):
    with service_with_stderr(subprocess.DEVNULL, "2>&-") as url:
        for _ in range(5):
            assert requests.post(f"{url}/predict", images[:1].tobytes(), headers=RAW, timeout=PATIENCE).ok
        assert dropped(url) >= 5


def test_requests_are_served_if_nobody_reads_the_log():
    reader, writer = os.pipe()
    try:
        with service_with_stderr(writer) as url, requests.Session() as session:
            for _ in range(1_000):
                assert session.get(f"{url}/healthz", timeout=PATIENCE).ok
            assert dropped(url) > 100
    finally:
        os.close(reader)
        os.close(writer)


def test_requests_are_served_if_the_log_s_reader_has_exited():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with service_with_stderr(writer) as url:
            assert requests.get(f"{url}/healthz", timeout=PATIENCE).ok
            assert dropped(url) > 0
    finally:
        os.close(writer)
