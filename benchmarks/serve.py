"""Measure requests per second, latency and CPU time of our service and of three peers.

`python -m benchmarks.serve` starts every server in turn, in several rounds, and the peers also with duties (metrics and
access log). A server has one worker per core and one ONNX Runtime thread per worker. Its answer and duties are checked.
`wrk` repeats one request on several connections. Writes docs/benchmarks-serve.json and the table in docs/benchmarks.md.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import requests

from benchmarks import pages
from benchmarks.pictures import mnist
from model.cores import available_cores
from train import machine
from train.markdown import table
from train.paths import RELEASE, ROOT

GRAPH = RELEASE / "digits.onnx"
BIN = ROOT / ".venv-bench" / "bin"  # this environment has our service's packages, too
COMPARED = ("onnxruntime", "flask", "gunicorn", "gevent", "fastapi", "uvicorn", "litserve", "prometheus-client")
PORT, CORES, CONNECTIONS = 9321, available_cores(), 16
URL = f"http://127.0.0.1:{PORT}/predict"
OURS = "ours"
UVICORN = "uvicorn --loop uvloop --http httptools --no-access-log --log-level warning"
PEERS = {
    "Flask + gunicorn": f"gunicorn --workers {CORES} --threads 4 --bind 127.0.0.1:{PORT} benchmarks.peers:flask_app()",
    "FastAPI + uvicorn": f"{UVICORN} --workers {CORES} --port {PORT} --factory benchmarks.peers:fastapi_app",
    "LitServe": "python -m benchmarks.litserve_peer",
}
SERVERS = {OURS: "python -m serve"} | PEERS | {f"{name}, with duties": command for name, command in PEERS.items()}
IMAGE = mnist("t10k")[0][0]
BODY, JSON = json.dumps({"image": IMAGE.tolist()}), {"Content-Type": "application/json"}


def main() -> None:
    """Measure every server, print the table and write the files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="seconds per measurement (default: 2)")
    parser.add_argument("--out", type=Path, default=pages.DOCS, help="output folder (default: docs)")
    options = parser.parse_args()
    if not (shutil.which("wrk") and BIN.exists()):
        parser.error(f"expected wrk (apt-get install wrk) and {BIN} (`make bench` installs it)")
    rounds = [{name: _measure(name, options.seconds) for name in SERVERS} for _ in range(options.rounds)]
    locks = "".join((ROOT / "requirements" / f"{name}.txt").read_text() for name in ("serve", "bench"))
    versions = dict(re.findall(r"^([\w-]+)==(\S+)", locks, re.M))
    result = {
        "date": str(datetime.now(UTC).date()),
        "source_revision": machine.source_revision(),
        "device": machine.describe(machine.pick("cpu")),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "versions": {name: versions[name] for name in COMPARED},
        "servers": {
            name: {key: pages.summary([one[name][key] for one in rounds]) for key in values}
            for name, values in rounds[0].items()
        },
    }
    pages.write(options.out, "benchmarks.md", "benchmarks-serve", result, figures(result))


def _measure(name: str, seconds: int) -> dict[str, float]:
    """Return a server's requests per second, latencies and CPU time per request, over `seconds` after a warm-up."""
    with _running(name) as pid:
        _wrk(3)
        before = _cpu_seconds(pid)
        found = _wrk(seconds)
        return found | {"CPU ms": 1_000 * (_cpu_seconds(pid) - before) / (found["rate"] * seconds)}


@contextmanager
def _running(name: str) -> Iterator[int]:
    """Start the server `name` of SERVERS, check it, yield its process id and stop it."""
    with tempfile.TemporaryDirectory() as folder:
        log, environment = Path(folder) / "log", {key: os.environ[key] for key in ("HOME", "PATH")}
        environment |= {"PORT": str(PORT), "WORKERS": str(CORES), "GRAPH": str(GRAPH), "ORT_DISABLE_TELEMETRY": "1"}
        environment |= {"PROMETHEUS_MULTIPROC_DIR": folder, "DUTIES": "" if name in PEERS else "all"}
        program, *options = SERVERS[name].split()
        with log.open("wb") as file:
            process = subprocess.Popen(
                [BIN / program, *options], cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )
        try:
            _check(process, log, duties=name not in PEERS)
            yield process.pid
        except AssertionError as error:
            raise SystemExit(f"{name}: {error}\n{log.read_text(errors='replace')[-2000:]}") from error
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with suppress(ProcessLookupError):  # LitServe's workers survive their parent and keep the cores busy
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _check(process: subprocess.Popen[bytes], log: Path, duties: bool) -> None:
    """Wait for the first answer. Assert that it is correct and, with `duties`, that requests are counted and logged."""
    deadline, answer = time.monotonic() + 120, None
    while answer is None:
        assert process.poll() is None, f"expected a running server, found exit status {process.returncode}"
        assert time.monotonic() < deadline, "expected an answer within 120 seconds, found none"
        time.sleep(0.1)
        with suppress(requests.ConnectionError):
            answer = requests.post(URL, BODY, headers=JSON, timeout=10).json()
    expected = onnxruntime.InferenceSession(GRAPH).run(["probabilities"], {"image": IMAGE[None]})[0][0]
    found = answer.get("predictions", [answer])[0]["probabilities"]
    assert np.allclose(found, expected, atol=1e-5), f"expected the probabilities {expected}, found {found}"
    if duties:
        time.sleep(0.5)  # a server might count or log only after its answer
        text = requests.get(f"http://127.0.0.1:{PORT}/metrics", timeout=10).text
        counted = re.findall(r"^\w+_requests_total\{.*/predict.*\} (\S+)$", text, re.M)
        logged = re.findall(r'^\{.*"path": ?"/predict".*\}$', log.read_text(), re.M)
        assert len(logged) == sum(map(float, counted)) > 0, f"expected counted and logged requests, found:\n{text}"


def _cpu_seconds(pid: int) -> float:
    """Return the seconds of CPU that a process and its living descendants have used."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(map(_cpu_seconds, map(int, children)))


def _wrk(seconds: int) -> dict[str, float]:
    """Run wrk for `seconds`. Return requests per second, and the 50th and 99th percentile of latency in ms."""
    # By default, wrk counts a response after more than 2 s as an error; a worker's start may take 2 s.
    command = f"wrk -t1 -c{CONNECTIONS} -d{seconds}s --timeout 10s -s {ROOT}/benchmarks/wrk.lua {URL}"
    environment = os.environ | {"BODY": BODY}
    output = subprocess.run(command.split(), env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
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
    columns = ["", "requests/s", "ours ÷ this server", "p50, ms", "p99, ms", "CPU per request, ms"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    measured = (
        f"Measured on {result['date']} at revision {result['source_revision'][:7]}: {result['device']}; {versions}; "
        f"{result['rounds']} rounds of {result['seconds']} seconds per measurement, after a warm-up."
    )
    return {"serving": f"{table(columns, rows)}\n\n{measured}"}


if __name__ == "__main__":
    main()
