"""Requests a second, latency, CPU and memory: this service beside what people would use instead.

`python -m benchmarks.serve` runs every server in turn, several rounds, each with as many workers as there are cores,
all with the same graph and the same request, closed loop, by wrk (Debian's `wrk`). Writes docs/benchmarks-serve.json.
"""

import argparse
import gzip
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.rounds import summary
from train.files import write_json

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers"
GRAPH = ROOT / "model" / "release" / "digits.onnx"
OURS, BENCH = ROOT / ".venv-serve" / "bin", ROOT / ".venv-bench" / "bin"
PORT, CORES = 9321, len(os.sched_getaffinity(0))
CONNECTIONS = (1, 16, 64)
WORKERS, BATCHES = (1, 2, 4), (1, 10, 100, 1_000)  # of our service alone, for whoever sizes a deployment


@dataclass(frozen=True)
class Server:
    """A server and how its own documentation would have it started."""

    name: str
    command: list[str | Path]
    folder: Path = PEERS
    picture: str | None = "/predict"  # where a PNG is posted, if anywhere
    constant: str = "/healthz"  # where a constant is answered
    threaded: str | None = None  # where the JSON image is predicted in a thread, if anywhere
    environment: dict[str, str] = field(default_factory=dict)


SERVERS = [
    Server("ours", [OURS / "python", "-m", "serve"], ROOT),
    Server(
        "Flask + gunicorn, plain",
        [OURS / "gunicorn", "--workers", str(CORES), "--threads", "4", "--bind", f"127.0.0.1:{PORT}", "flask_app:app"],
    ),
    Server(
        "FastAPI + uvicorn",
        [
            BENCH / "uvicorn",
            *f"--workers {CORES} --loop uvloop --http httptools --no-access-log --log-level warning".split(),
            *f"--port {PORT} fastapi_app:app".split(),
        ],
        picture="/picture",
        threaded="/threaded",
    ),
    Server("LitServe", [BENCH / "python", "litserve_app.py"], picture=None, constant="/health"),
    Server(
        "BentoML",
        [BENCH / "bentoml", "serve", "bentoml_app:Digits", "--host", "127.0.0.1", "--port", str(PORT)],
        picture=None,
        environment={"BENTOML_DO_NOT_TRACK": "True"},
    ),
]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        parser.error("expected wrk on the PATH, found none: apt-get install wrk")
    with socket.socket() as client:
        if client.connect_ex(("127.0.0.1", PORT)) == 0:
            parser.error(f"expected port {PORT} free, found a server there")
    with tempfile.TemporaryDirectory() as folder:
        scripts = _scripts(Path(folder))
        rounds = [_round(scripts, options.seconds) for _ in range(options.rounds)]
    results = {name: _summary([one[name] for one in rounds]) for name in rounds[0]}
    write_json(
        options.out / "benchmarks-serve.json",
        {"rounds": options.rounds, "seconds": options.seconds, "versions": _versions(), "results": results},
    )
    for name, values in results.items():
        print(name, json.dumps({key: round(value["mean"], 2) for key, value in values.items()}))


def _versions() -> dict[str, str]:
    """Return the version of each package that is compared, as installed."""
    code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    found: dict[str, str] = {}
    for folder, names in (
        (OURS, ["onnxruntime", "flask", "gunicorn", "gevent"]),
        (BENCH, ["fastapi", "uvicorn", "litserve", "bentoml"]),
    ):
        done = subprocess.run([folder / "python", "-c", code, *names], stdout=subprocess.PIPE, text=True, check=True)
        found |= dict(zip(names, done.stdout.split(), strict=True))
    return found


def _round(scripts: dict[str, Path], seconds: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {"ONNX Runtime alone": _runtime(seconds)}
    for server in SERVERS:
        with _running(server) as pid:
            found[server.name] = _measured(server, pid, scripts, seconds)
    return found | {"growth": _growth(scripts, seconds)}


def _measured(server: Server, pid: int, scripts: dict[str, Path], seconds: int) -> dict[str, float]:
    """Return what wrk says of `server`, warm: keys name the request, the connections and the quantity."""
    _wrk(scripts["json"], "/predict", 16, 1)
    found: dict[str, float] = {}
    for connections in CONNECTIONS:
        before = _cpu(pid)
        answer = _wrk(scripts["json"], "/predict", connections, seconds)
        found |= {f"json {connections} {key}": value for key, value in answer.items()}
        if connections == 16:
            found["CPU seconds a thousand"] = (_cpu(pid) - before) / (answer["rate"] * seconds) * 1_000
    if server.picture:
        found |= {f"png 16 {key}": value for key, value in _wrk(scripts["png"], server.picture, 16, seconds).items()}
    if server.threaded:
        found["threaded 16 rate"] = _wrk(scripts["json"], server.threaded, 16, seconds)["rate"]
    if server.name == "ours":
        found["images in thousands 1 rate"] = 1_000 * _wrk(scripts["1000"], "/predict", 1, seconds)["rate"]
    found["constant 16 rate"] = _wrk(scripts["get"], server.constant, 16, seconds)["rate"]
    found["MiB"] = _memory(pid)
    return found


def _growth(scripts: dict[str, Path], seconds: int) -> dict[str, float]:
    """Return how our service's rate, latency and memory grow with its workers, and with the images a request."""
    found: dict[str, float] = {}
    for workers in WORKERS:
        with _running(replace(SERVERS[0], environment={"WEB_CONCURRENCY": str(workers)})) as pid:
            found[f"workers {workers} MiB at rest"] = _memory(pid)
            _wrk(scripts["json"], "/predict", 16, 1)
            answer = _wrk(scripts["json"], "/predict", 16, seconds)
            found |= {f"workers {workers} {key}": value for key, value in answer.items()}
            found[f"workers {workers} MiB"] = _memory(pid)
            for batch in BATCHES if workers == 1 else ():
                answer = _wrk(scripts[str(batch)], "/predict", 16, seconds)
                found[f"batch {batch} images"] = batch * answer["rate"]
                found[f"batch {batch} p99"] = answer["p99"]
                found[f"batch {batch} MiB"] = _memory(pid)
    return found


def _wrk(script: Path, path: str, connections: int, seconds: int) -> dict[str, float]:
    """Return requests a second, and the 50th and 99th percentile of latency in milliseconds."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script]
    text = subprocess.run(
        [*command, f"http://127.0.0.1:{PORT}{path}"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"{path}: expected answers of 200 alone, found:\n{text}")
    unit = {"us": 0.001, "ms": 1.0, "s": 1_000.0}

    def latency(percent: str) -> float:
        value, name = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
        return float(value) * unit[name]

    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])  # type: ignore[index]
    return {"rate": rate, "p50": latency("50"), "p99": latency("99")}


@contextmanager
def _running(server: Server) -> Iterator[int]:
    """Run `server` until it answers a prediction, and end it afterwards."""
    environment = {
        **os.environ,
        "PORT": str(PORT),
        "WORKERS": str(CORES),
        "GRAPH": str(GRAPH),
        "PYTHONPATH": str(server.folder),
        "ORT_DISABLE_TELEMETRY": "1",
        **server.environment,
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            server.command, cwd=server.folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _await(process, log)
            yield process.pid
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            time.sleep(1)


def _await(process: subprocess.Popen[bytes], log: Any) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/predict", _json_body(), {"Content-Type": "application/json"}
    )
    for _ in range(600):
        with suppress(OSError):
            urllib.request.urlopen(request, timeout=5).read()
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    log.seek(0)
    raise SystemExit(f"{process.args}: expected a server that answers, found: {log.read()[-2000:].decode()}")


def _tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _tree(int(child)))]


def _cpu(pid: int) -> float:
    """Return the seconds of CPU that a process and all its children have used."""
    ticks = 0
    for one in _tree(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> float:
    """Return the MiB that a process and all its children hold, what they share counted once (PSS)."""
    kilobytes = 0
    for one in _tree(pid):
        with suppress(OSError):
            kilobytes += int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{one}/smaps_rollup").read_text(), re.M)[1])  # type: ignore[index]
    return kilobytes / 1024


def _runtime(seconds: int) -> dict[str, float]:
    """Return images a second of ONNX Runtime called in a loop, one thread, one image or a thousand at a time."""
    code = """
import gzip, sys, time
import numpy as np, onnxruntime as ort
options = ort.SessionOptions(); options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options)
images = np.frombuffer(gzip.open(sys.argv[2]).read()[16:], np.uint8).reshape(-1, 28, 28)
for size in (1, 100, 1000):
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < float(sys.argv[3]):
        session.run(None, {"image": images[:size]}); calls += 1
    print(calls * size / (time.perf_counter() - start))
"""
    data = ROOT / "data" / "mnist" / "t10k-images-idx3-ubyte.gz"
    done = subprocess.run(
        [OURS / "python", "-c", code, GRAPH, data, str(seconds)],
        stdout=subprocess.PIPE,  # its standard error is seen: it says why it fails
        text=True,
        check=True,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
    )
    return {f"batch {size}": float(rate) for size, rate in zip((1, 100, 1000), done.stdout.split(), strict=True)}


def _summary(values: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {key: summary([one[key] for one in values]) for key in values[0]}


def _images() -> bytes:
    return gzip.open(ROOT / "data" / "mnist" / "t10k-images-idx3-ubyte.gz").read()[16:]


def _json_body() -> bytes:
    pixels = list(_images()[:784])
    return json.dumps({"image": [pixels[i : i + 28] for i in range(0, 784, 28)]}).encode()


def _scripts(folder: Path) -> dict[str, Path]:
    """Write wrk's scripts, each with its request's body in a file beside it."""
    from PIL import Image

    picture = io.BytesIO()
    Image.frombytes("L", (28, 28), _images()[:784]).save(picture, "PNG")
    bodies = {
        "json": ("application/json", _json_body()),
        "png": ("image/png", picture.getvalue()),
        **{str(batch): ("application/octet-stream", _images()[: 784 * batch]) for batch in BATCHES},
    }
    scripts = {"get": folder / "get.lua"}
    scripts["get"].write_text('wrk.method = "GET"\n')
    for name, (content_type, body) in bodies.items():
        (folder / name).write_bytes(body)
        scripts[name] = folder / f"{name}.lua"
        scripts[name].write_text(
            f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "{content_type}"\n'
            f'local file = io.open("{folder / name}", "rb")\nwrk.body = file:read("*a")\nfile:close()\n'
        )
    return scripts


if __name__ == "__main__":
    main()
