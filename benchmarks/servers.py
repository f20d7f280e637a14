"""The servers that benchmarks.serve compares: start, check, stop; the CPU time and memory of their processes.

Every start checks that the answer is right, and that a server with duties counts and logs its requests, returns their
ids and limits their bodies.
"""

import gzip
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from train.paths import DATA, RELEASE, ROOT

PEERS_FOLDER = ROOT / "benchmarks" / "peers"
GRAPH = RELEASE / "digits.onnx"
OURS_BIN, BENCH_BIN = ROOT / ".venv-serve" / "bin", ROOT / ".venv-bench" / "bin"
PORT, CORES = 9321, len(os.sched_getaffinity(0))
START_TIMEOUT_S = 120
CHECKED_REQUESTS = 5
TOO_LARGE = 2**30  # bytes


@dataclass(frozen=True)
class Server:
    """A server and the command that its documentation gives, with one worker per core."""

    name: str
    program: Path
    options: str
    folder: Path = PEERS_FOLDER
    duties: bool = False


OURS = Server("ours", OURS_BIN / "python", "-m serve", ROOT, duties=True)
FLASK = Server(
    "Flask + gunicorn",
    OURS_BIN / "gunicorn",
    f"--workers {CORES} --threads 4 --bind 127.0.0.1:{PORT} flask_app:app",
)
FASTAPI = Server(
    "FastAPI + uvicorn",
    BENCH_BIN / "uvicorn",
    f"--workers {CORES} --loop uvloop --http httptools --no-access-log --log-level warning --port {PORT} "
    "fastapi_app:app",
)
LITSERVE = Server("LitServe", BENCH_BIN / "python", "litserve_app.py")
BARE = [FLASK, FASTAPI, LITSERVE]
WITH_DUTIES = [replace(peer, name=f"{peer.name}, with duties", duties=True) for peer in BARE]  # see peers/duties.py


@contextmanager
def running(server: Server) -> Iterator[int]:
    """Start `server`, check it, yield its process id and stop it. Exits with its log if it fails a check."""
    with socket.socket() as client:
        if client.connect_ex(("127.0.0.1", PORT)) == 0:
            raise SystemExit(f"expected port {PORT} free, found a server there")
    with tempfile.TemporaryDirectory() as folder:
        environment = {  # the caller's other variables do not reach the server
            **{name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ},
            "PORT": str(PORT),
            "WORKERS": str(CORES),
            "GRAPH": str(GRAPH),
            "PYTHONPATH": str(server.folder),
            "ORT_DISABLE_TELEMETRY": "1",
            "PROMETHEUS_MULTIPROC_DIR": folder,
            **({"DUTIES": "1"} if server.duties else {}),
        }
        command, log = [server.program, *server.options.split()], Path(folder) / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=server.folder, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        try:
            _wait_for_answer(process)
            _check_answer()
            if server.duties:
                _check_duties(log)
            yield process.pid
        except AssertionError as error:
            raise SystemExit(f"{server.name}: {error}\n{log.read_text(errors='replace')[-2000:]}") from error
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with suppress(ProcessLookupError):  # LitServe's workers outlive it, and keep the cores busy
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.5)


def cpu_seconds(pid: int) -> float:
    """Return the seconds of CPU that a process and its descendants have used."""
    ticks = 0
    for one in _process_tree(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> float:
    """Return the memory of a process and its descendants in MiB; shared pages count once (PSS)."""
    maps = (Path(f"/proc/{one}/smaps_rollup").read_text() for one in _process_tree(pid))
    return sum(int(kilobytes) for text in maps for kilobytes in re.findall(r"^Pss:\s+(\d+)", text, re.M)) / 1024


def _process_tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _process_tree(int(child)))]


def image() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the first test image of MNIST, uint8 [28, 28]."""
    pixels = gzip.decompress((DATA / "t10k-images-idx3-ubyte.gz").read_bytes())[16 : 16 + 784]
    return np.frombuffer(pixels, np.uint8).reshape(28, 28)


def json_body() -> bytes:
    """Return the first test image as the body of a request."""
    return json.dumps({"image": image().tolist()}).encode()


def _request(method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Return the status, the headers (names in lower case) and the body of a response."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", **headers})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def _wait_for_answer(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            if _request("POST", "/predict", json_body())[0] == 200:
                return
        assert process.poll() is None, f"expected a server, found exit status {process.returncode}"
        time.sleep(0.1)
    raise AssertionError(f"expected an answer within {START_TIMEOUT_S} s, found none")


def _check_answer() -> None:
    session = onnxruntime.InferenceSession(GRAPH)
    probabilities, digits = session.run(["probabilities", "digit"], {"image": image()[None]})
    answer: Any = json.loads(_request("POST", "/predict", json_body())[2])
    answer = answer.get("predictions", [answer])[0]
    assert answer["digit"] == digits[0], f"expected the digit {digits[0]}, found {answer}"
    difference = abs(np.array(answer["probabilities"]) - probabilities[0]).max()
    assert difference < 1e-5, f"expected the probabilities {probabilities[0]}, found {answer}"


def _check_duties(log: Path) -> None:
    before = _counted()
    ids = [f"check-{number}" for number in range(CHECKED_REQUESTS)]
    for one in ids:
        found = _request("POST", "/predict", json_body(), **{"X-Request-ID": one})[1].get("x-request-id")
        assert found == one, f"expected the request id {one}, found {found}"
    counted = _counted() - before
    assert counted == len(ids), f"expected {len(ids)} requests counted in /metrics, found {counted}"
    lines = [json.loads(line) for line in log.read_text().splitlines() if '"check-' in line]
    logged = [line["request_id"] for line in lines if (line["path"], line["status"]) == ("/predict", 200)]
    assert sorted(logged) == ids, f"expected one line of the access log per request of {ids}, found {logged}"
    status = _request("POST", "/predict", **{"Content-Length": str(TOO_LARGE)})[0]
    assert status == 413, f"expected 413 for a body of {TOO_LARGE} bytes, found {status}"


def _counted() -> float:
    """Return how many predictions /metrics counts, of all workers."""
    text = _request("GET", "/metrics")[2].decode()
    counters = re.findall(r"^\w+_requests_total\{(.*)\} (\S+)$", text, re.M)
    return sum(float(value) for labels, value in counters if 'route="/predict"' in labels and 'status="200"' in labels)
