"""Requests per second, latency and CPU time of our service and of three peers: bare, and with equal duties.

`python -m benchmarks.serve` starts every server in turn, in several rounds, each with one worker per core, one ONNX
Runtime thread per worker and the same graph, and checks its answer and its duties. wrk (Debian's `wrk`) sends the same
request in a closed loop. Writes docs/benchmarks-serve.json and the table in docs/benchmarks.md.
"""

import argparse
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import onnxruntime

from benchmarks import pages
from model.cores import available_cores
from train import machine
from train.markdown import table
from train.paths import DATA, RELEASE, ROOT

BIN = ROOT / ".venv-bench" / "bin"  # has our service's packages, too
COMPARED = ("onnxruntime", "flask", "gunicorn", "gevent", "fastapi", "uvicorn", "litserve", "prometheus-client")
PORT, CORES, CONNECTIONS = 9321, available_cores(), 16
URL = f"http://127.0.0.1:{PORT}"
OURS = "ours"
UVICORN = "uvicorn --loop uvloop --http httptools --no-access-log --log-level warning"
PEERS = {
    "Flask + gunicorn": f"gunicorn --workers {CORES} --threads 4 --bind 127.0.0.1:{PORT} benchmarks.peers:flask_app()",
    "FastAPI + uvicorn": f"{UVICORN} --workers {CORES} --port {PORT} --factory benchmarks.peers:fastapi_app",
    "LitServe": "python -m benchmarks.litserve_peer",
}
SERVERS = {OURS: "python -m serve"} | PEERS | {f"{name}, with duties": command for name, command in PEERS.items()}
IMAGE = np.frombuffer(gzip.decompress((DATA / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, 784, 16)
BODY = json.dumps({"image": IMAGE.reshape(28, 28).tolist()})
WRK = f"""
wrk.method, wrk.headers['Content-Type'], wrk.body = 'POST', 'application/json', '{BODY}'
done = function(summary, latency)
    local errors = summary.errors
    print(string.format('{{"rate": %f, "p50": %f, "p99": %f, "errors": %d}}', 1e6 * summary.requests / summary.duration,
        latency:percentile(50) / 1000, latency:percentile(99) / 1000,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="per measurement (default: 2)")
    parser.add_argument("--out", type=Path, default=pages.DOCS, help="the folder written to (default: docs)")
    options = parser.parse_args()
    if not (shutil.which("wrk") and BIN.exists()):
        parser.error(f"expected wrk (apt-get install wrk) and {BIN} (`make bench` installs it)")
    rounds = [{name: _measure(name, options.seconds) for name in SERVERS} for _ in range(options.rounds)]
    code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    versions = subprocess.run([BIN / "python", "-c", code, *COMPARED], capture_output=True, text=True, check=True)
    result = {
        "date": str(datetime.now(UTC).date()),
        "source_revision": machine.source_revision(),
        "device": machine.describe(machine.pick("cpu")),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "versions": dict(zip(COMPARED, versions.stdout.split(), strict=True)),
        "servers": {
            name: {key: pages.summary([one[name][key] for one in rounds]) for key in values}
            for name, values in rounds[0].items()
        },
    }
    pages.write(options.out, "benchmarks.md", "benchmarks-serve", result, figures(result))
    print(figures(result)["serving"])


def _measure(name: str, seconds: int) -> dict[str, float]:
    """Return a server's requests per second, latencies and CPU time per request, after a second of warm-up."""
    with _running(name) as pid:
        _wrk(1)
        before = _cpu_seconds(pid)
        found = _wrk(seconds)
        return found | {"CPU ms": 1_000 * (_cpu_seconds(pid) - before) / (found["rate"] * seconds)}


@contextmanager
def _running(name: str) -> Iterator[int]:
    """Start a server, check it, yield its process id and stop it."""
    duties = name not in PEERS
    with tempfile.TemporaryDirectory() as folder:
        log, environment = Path(folder) / "log", {key: os.environ[key] for key in ("HOME", "PATH")}
        environment |= {"PORT": str(PORT), "WORKERS": str(CORES), "GRAPH": str(RELEASE / "digits.onnx")}
        environment |= {"ORT_DISABLE_TELEMETRY": "1", "PROMETHEUS_MULTIPROC_DIR": folder} | (
            {"DUTIES": "1"} if duties else {}
        )
        program, *options = SERVERS[name].split()
        with log.open("wb") as file:
            process = subprocess.Popen(
                [BIN / program, *options], cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        try:
            _check(process, log, duties)
            yield process.pid
        except AssertionError as error:
            raise SystemExit(f"{name}: {error}\n{log.read_text(errors='replace')[-2000:]}") from error
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):  # LitServe's workers outlive it, and keep the cores busy
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _check(process: subprocess.Popen[bytes], log: Path, duties: bool) -> None:
    """Wait for the first answer, and assert that it is right and that a server with `duties` performs each of them."""
    deadline = time.monotonic() + 120
    while not (answer := _request("/predict", BODY.encode())):
        assert process.poll() is None, f"expected a server, found exit status {process.returncode}"
        assert time.monotonic() < deadline, "expected an answer within 120 seconds, found none"
        time.sleep(0.1)
    found = json.loads(answer[2])
    session = onnxruntime.InferenceSession(RELEASE / "digits.onnx")
    (expected,) = session.run(["probabilities"], {"image": IMAGE.reshape(1, 28, 28)})
    probabilities = found.get("predictions", [found])[0]["probabilities"]
    assert np.allclose(probabilities, expected[0], atol=1e-5), (
        f"expected the probabilities {expected[0]}, found {found}"
    )
    if not duties:
        return
    before = _counted()
    _, headers, _ = _request("/predict", BODY.encode(), {"X-Request-ID": "check-1"})
    assert headers["X-Request-ID"] == "check-1", f"expected the request id check-1, found {headers}"
    assert _counted() == before + 1, f"expected {before + 1} requests counted in /metrics, found {_counted()}"
    lines = [json.loads(line) for line in log.read_text().splitlines() if '"check-1"' in line]
    found = [(line["path"], line["status"]) for line in lines]
    assert found == [("/predict", 200)], f"expected one line of the access log for the request, found {found}"
    status, _, _ = _request("/predict", b"", {"Content-Length": str(2**30)})
    assert status == 413, f"expected 413 for a body of 1 GiB, found {status}"


def _request(path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Any:
    """Return the status, the headers and the body of a response, or nothing if there is no server yet."""
    request = urllib.request.Request(URL + path, body, {"Content-Type": "application/json"} | (headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.headers, response.read()
    except HTTPError as error:
        return error.code, error.headers, error.read()
    except OSError:
        return None


def _counted() -> float:
    """Return how many predictions /metrics counts, of all workers."""
    counters = re.findall(r"^\w+_requests_total\{(.*)\} (\S+)$", _request("/metrics")[2].decode(), re.M)
    return sum(float(value) for labels, value in counters if 'route="/predict"' in labels and 'status="200"' in labels)


def _cpu_seconds(pid: int) -> float:
    """Return the seconds of CPU that a process and its descendants have used."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(map(_cpu_seconds, map(int, children)))


def _wrk(seconds: int) -> dict[str, float]:
    """Return requests per second, and the 50th and 99th percentile of latency in milliseconds."""
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(WRK)
        script.flush()
        # By default wrk gives up after 2 s, which a worker may take to start.
        command = f"wrk -t1 -c{CONNECTIONS} -d{seconds}s --timeout 10s -s {script.name} {URL}/predict"
        output = subprocess.run(command.split(), stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    if found.pop("errors"):
        raise SystemExit(f"expected only responses of status 200, found:\n{output}")
    return found


def figures(result: dict[str, Any]) -> dict[str, str]:
    """Return the figures of docs/benchmarks.md from the content of docs/benchmarks-serve.json."""
    servers, rows = result["servers"], []
    for name, values in servers.items():
        ratio = "" if name == OURS else f"{servers[OURS]['rate']['mean'] / values['rate']['mean']:.2f} ×"
        cells = [pages.plus_minus(values[key], digits) for key, digits in {"p50": 1, "p99": 1, "CPU ms": 2}.items()]
        rows.append(["**ours**" if name == OURS else name, pages.plus_minus(values["rate"], 0), ratio, *cells])
    columns = ["", "requests/s", "ours ÷ it", "p50, ms", "p99, ms", "CPU per request, ms"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    measured = (
        f"Measured on {result['date']} at revision {result['source_revision'][:7]}: {result['device']}; {versions}; "
        f"{result['rounds']} rounds of {result['seconds']} seconds per measurement, after a warm-up."
    )
    return {"serving": f"{table(columns, rows)}\n\n{measured}"}


if __name__ == "__main__":
    main()
