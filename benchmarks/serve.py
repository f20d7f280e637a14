"""Requests per second, latency, CPU and memory of our service and of four peers: bare, and with equal duties.

`python -m benchmarks.serve` starts every server in turn, in several rounds, each with one worker per core, one ONNX
Runtime thread per worker and the same graph. wrk (Debian's `wrk`) sends the same request in a closed loop. Writes
docs/benchmarks-serve.json.
"""

import argparse
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image

from benchmarks import servers
from benchmarks.rounds import summary
from benchmarks.servers import OURS, Server
from train.files import write_json
from train.paths import ROOT

WORKERS, BATCHES = (1, 2, 4), (1, 10, 100, 1_000)  # of our service alone, for sizing a deployment
MS_PER_UNIT = {"us": 0.001, "ms": 1.0, "s": 1_000.0}  # of wrk's latencies

RUNTIME_ALONE = """
import gzip, sys, time
import numpy as np, onnxruntime as ort
options = ort.SessionOptions(); options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options)
images = np.frombuffer(gzip.open(sys.argv[2]).read()[16:], np.uint8).reshape(-1, 28, 28)
for size in (1, 100, 1000):
    calls, start = 0, time.perf_counter()
    while time.perf_counter() - start < float(sys.argv[3]):
        session.run(["probabilities", "digit"], {"image": images[:size]}); calls += 1
    print(calls * size / (time.perf_counter() - start))
"""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="per measurement")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        parser.error("expected wrk on the PATH, found none: apt-get install wrk")
    for folder in (servers.OURS_BIN, servers.BENCH_BIN):
        if not folder.exists():
            parser.error(f"expected {folder}, found none: `make bench` installs it")
    with tempfile.TemporaryDirectory() as folder:
        scripts = _write_scripts(Path(folder))
        compared = [OURS, *servers.BARE, *map(servers.with_duties, servers.BARE)]
        rounds = [
            {server.name: _measure(server, scripts, options.seconds) for server in compared}
            for _ in range(options.rounds)
        ]
        scaling = _measure_scaling(scripts, options.seconds)
    results = {
        name: {key: summary([one[name][key] for one in rounds]) for key in values} for name, values in rounds[0].items()
    }
    result = {
        "date": str(datetime.now(UTC).date()),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "versions": _versions(),
        "servers": results,
        "scaling": scaling,
        "runtime": _measure_runtime(options.seconds),
    }
    write_json(options.out / "benchmarks-serve.json", result)
    for name, values in results.items():
        print(name, json.dumps({key: round(value["mean"], 2) for key, value in values.items()}))


def _versions() -> dict[str, str]:
    """Return the installed version of each package that is compared."""
    code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    found: dict[str, str] = {}
    for folder, names in (
        (servers.OURS_BIN, ["onnxruntime", "flask", "gunicorn", "gevent"]),
        (servers.BENCH_BIN, ["fastapi", "uvicorn", "litserve", "bentoml", "prometheus-client"]),
    ):
        done = subprocess.run([folder / "python", "-c", code, *names], stdout=subprocess.PIPE, text=True, check=True)
        found |= dict(zip(names, done.stdout.split(), strict=True))
    return found


def _measure(server: Server, scripts: dict[str, Path], seconds: int) -> dict[str, float]:
    """Return a server's figures after a second of warm-up; keys name the request, the connections and the quantity."""
    found: dict[str, float] = {}
    with servers.running(server) as pid:
        _wrk(scripts["json"], "/predict", 16, 1)
        for connections in server.connections:
            before = _cpu_seconds(pid)
            answer = _wrk(scripts["json"], "/predict", connections, seconds)
            found |= {f"json {connections} {key}": value for key, value in answer.items()}
            if connections == 16:
                found["CPU ms per request"] = 1_000 * (_cpu_seconds(pid) - before) / (answer["rate"] * seconds)
        if server.picture:
            found["png 16 rate"] = _wrk(scripts["png"], server.picture, 16, seconds)["rate"]
        if server.constant:
            found["constant 16 rate"] = _wrk(scripts["get"], server.constant, 16, seconds)["rate"]
        if server == OURS:
            found["1000 images rate"] = 1_000 * _wrk(scripts["1000"], "/predict", 1, seconds)["rate"]
        found["MiB"] = _memory_mib(pid)
    return found


def _measure_scaling(scripts: dict[str, Path], seconds: int) -> dict[str, float]:
    """Return our service's rate, latency and memory by number of workers, and by images per request."""
    found: dict[str, float] = {}
    for workers in WORKERS:
        with servers.running(replace(OURS, environment={"WEB_CONCURRENCY": str(workers)})) as pid:
            found[f"workers {workers} MiB at rest"] = _memory_mib(pid)
            _wrk(scripts["json"], "/predict", 16, 1)
            answer = _wrk(scripts["json"], "/predict", 16, seconds)
            found |= {f"workers {workers} {key}": value for key, value in answer.items()}
            found[f"workers {workers} MiB"] = _memory_mib(pid)
            for batch in BATCHES if workers == 1 else ():
                answer = _wrk(scripts[str(batch)], "/predict", 16, seconds)
                found[f"batch {batch} images"] = batch * answer["rate"]
                found[f"batch {batch} p99"] = answer["p99"]
                found[f"batch {batch} MiB"] = _memory_mib(pid)
    return found


def _wrk(script: Path, path: str, connections: int, seconds: int) -> dict[str, float]:
    """Return requests per second, and the 50th and 99th percentile of latency in milliseconds."""
    # By default wrk gives up after 2 s, which a worker may take to start.
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "--latency", "-s", script]
    text = subprocess.run(
        [*command, f"http://127.0.0.1:{servers.PORT}{path}"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"{path}: expected only responses of status 200, found:\n{text}")
    latencies = {
        percent: float(value) * MS_PER_UNIT[unit]
        for percent, value, unit in re.findall(r"(\d+)%\s+([\d.]+)(us|ms|s)", text)
    }
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])  # type: ignore[index]
    return {"rate": rate, "p50": latencies["50"], "p99": latencies["99"]}


def _process_tree(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(one for child in children for one in _process_tree(int(child)))]


def _cpu_seconds(pid: int) -> float:
    """Return the seconds of CPU that a process and its descendants have used."""
    ticks = 0
    for one in _process_tree(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _memory_mib(pid: int) -> float:
    """Return the memory of a process and its descendants in MiB; shared pages count once (PSS)."""
    kilobytes = 0
    for one in _process_tree(pid):
        with suppress(OSError):
            kilobytes += int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{one}/smaps_rollup").read_text(), re.M)[1])  # type: ignore[index]
    return kilobytes / 1024


def _measure_runtime(seconds: int) -> dict[str, float]:
    """Return images per second of ONNX Runtime in a loop on one thread, by images per call."""
    done = subprocess.run(
        [servers.OURS_BIN / "python", "-c", RUNTIME_ALONE, servers.GRAPH, servers.TEST_IMAGES, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
    )
    return {size: float(rate) for size, rate in zip(("1", "100", "1000"), done.stdout.split(), strict=True)}


def _write_scripts(folder: Path) -> dict[str, Path]:
    """Write wrk's scripts, each with its request's body in a file beside it."""
    picture = io.BytesIO()
    Image.frombytes("L", (28, 28), servers.images()[:784]).save(picture, "PNG")
    bodies = {
        "json": ("application/json", servers.json_body()),
        "png": ("image/png", picture.getvalue()),
        **{str(batch): ("application/octet-stream", servers.images()[: 784 * batch]) for batch in BATCHES},
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
