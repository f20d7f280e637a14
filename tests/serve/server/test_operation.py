"""Operation: files after a shutdown, IPv6, a full disk, a shutdown during a reload, a system other than Linux."""

import re
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from PIL import Image

from tests.polling import PATIENCE, answers
from tests.serve.conftest import IN_FLIGHT
from tests.serve.hostile import encode, head
from train.paths import ROOT

pytestmark = pytest.mark.slow  # each test starts its own services


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], check=False).returncode:
        pytest.skip("expected permission to mount a file system, found none")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_shutdown_leaves_no_files_and_deletes_no_others(start, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    (given / "counter_1.db").write_bytes(b"precious")
    service = start(WEB_CONCURRENCY=1, TMPDIR=given, PROMETHEUS_MULTIPROC_DIR=given)
    maps = Path(f"/proc/{service.workers()[0]}/maps").read_text()
    folder = Path(re.search(r"(/\S+/serve-\w+)/counter_\d+\.db", maps)[1])
    assert service.stop() == 0
    assert not folder.exists()
    assert [path.name for path in given.iterdir()] == ["counter_1.db"]


def test_an_ipv6_address_may_have_brackets(start):
    if not socket.has_dualstack_ipv6():
        pytest.skip("expected IPv6, found none")
    assert requests.get(f"{start(WEB_CONCURRENCY=1, HOST='[::1]').url}/healthz", timeout=PATIENCE).ok


def test_a_disk_that_fills_up_harms_no_worker(start, small_disk, images):
    service = start(WEB_CONCURRENCY=1, TMPDIR=small_disk)
    workers = service.workers()
    with (small_disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4_096)):
            pass
    for path in ("/healthz", "/", "/openapi.json", "/v2", "/v2/models/digits", "/nowhere", "/metrics"):
        assert requests.get(service.url + path, timeout=PATIENCE).status_code in (200, 404)
    assert service.predict(images[:1]).ok
    large = requests.post(f"{service.url}/predict", files={"image": bytes(1_000_000)}, timeout=PATIENCE)
    assert large.status_code == 422  # not 500: an upload needs no temporary file
    assert service.workers() == workers
    service.reload()
    service.wait(lambda: answers(service.url))


def test_a_reload_replaces_every_worker_and_the_shutdown_does_not_wait_for_it(start):
    service = start(WEB_CONCURRENCY=1, REQUEST_TIMEOUT=20)
    service.process.send_signal(signal.SIGTTIN)
    service.wait(lambda: len(service.workers()) == 2)
    service.reload()
    with service.connect() as stalled:
        stalled.sendall(head("/predict", "image/png", "Content-Length: 9"))
        service.wait(lambda: service.metrics()[IN_FLIGHT] == 2)  # the stalled request and the request for the metrics
        old = set(service.workers())
        service.process.send_signal(signal.SIGHUP)
        service.wait(lambda: set(service.workers()) - old)
        service.process.send_signal(signal.SIGTERM)
        service.wait_for_lines("message", "Handling signal: term")
        assert old & set(service.workers())
    assert service.process.wait(PATIENCE) == 0


# Content of sitecustomize.py, which Python runs at the start of each process. It removes what macOS does not have.
WITHOUT_LINUX = """
import io, os, resource
del os.posix_fallocate, os.sched_getaffinity
def refuse(*_): raise ValueError("current limit exceeds maximum limit")
def hide(call):
    def hidden(path, *arguments, **keywords):
        if str(path).startswith(("/proc", "/dev/shm", "/sys/fs/cgroup")):
            raise FileNotFoundError(2, "No such file or directory", path)
        return call(path, *arguments, **keywords)
    return hidden
resource.setrlimit, io.open, os.stat = refuse, hide(io.open), hide(os.stat)
access = os.access
os.access = lambda path, mode: not str(path).startswith("/dev/shm") and access(path, mode)
"""


def test_the_service_works_without_what_only_linux_has(start, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_LINUX)
    service = start(WEB_CONCURRENCY=1, PYTHONPATH=tmp_path, TMPDIR=tmp_path)
    picture = encode(Image.open(ROOT / "docs" / "seven.png").convert("L"), "JPEG")
    answer = requests.post(f"{service.url}/predict", files={"image": picture}, timeout=PATIENCE)
    assert [prediction["digit"] for prediction in answer.json()["predictions"]] == [7]
    (line,) = [line for line in service.lines() if line["level"] == "warning"]
    assert line["message"] == "without /proc, the memory of the picture decoders is not limited"
    assert list(tmp_path.glob("serve-*"))  # on Linux, these files are in /dev/shm
    assert service.stop() == 0
