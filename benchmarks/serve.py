"""Requests per second, latency, CPU and memory of our service and of three peers: bare, and with equal duties.

`python -m benchmarks.serve` starts every server in turn, in several rounds, each with one worker per core, one ONNX
Runtime thread per worker and the same graph. wrk (Debian's `wrk`) sends the same request in a closed loop. Writes
docs/benchmarks-serve.json and the table in docs/benchmarks.md.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import pages, servers
from benchmarks.servers import BARE, OURS, WITH_DUTIES, Server
from train import machine
from train.machine import source_revision
from train.markdown import table

MS_PER_UNIT = {"us": 0.001, "ms": 1.0, "s": 1_000.0}  # of wrk's latencies


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="per measurement")
    parser.add_argument("--out", type=Path, default=pages.DOCS)
    options = parser.parse_args()
    if not shutil.which("wrk"):
        parser.error("expected wrk on the PATH, found none: apt-get install wrk")
    for folder in (servers.OURS_BIN, servers.BENCH_BIN):
        if not folder.exists():
            parser.error(f"expected {folder}, found none: `make bench` installs it")
    compared = [OURS, *BARE, *WITH_DUTIES]
    rounds = [{server.name: _measure(server, options.seconds) for server in compared} for _ in range(options.rounds)]
    result = {
        "date": str(datetime.now(UTC).date()),
        "source_revision": source_revision(),
        "device": machine.describe(machine.pick("cpu")),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "versions": _versions(),
        "servers": {
            name: {key: pages.summary([one[name][key] for one in rounds]) for key in values}
            for name, values in rounds[0].items()
        },
    }
    pages.write(options.out, "benchmarks.md", "benchmarks-serve", result, figures(result))
    print(figures(result)["serving"])


def _measure(server: Server, seconds: int) -> dict[str, float]:
    """Return a server's figures after a second of warm-up; a key names the number of connections and the quantity."""
    found: dict[str, float] = {}
    with servers.running(server) as pid, tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "predict.lua"
        body = servers.json_body().decode()
        script.write_text(
            f"wrk.method = 'POST'\nwrk.headers['Content-Type'] = 'application/json'\nwrk.body = '{body}'\n"
        )
        _wrk(script, 16, 1)
        for connections in (16, 64):
            before = servers.cpu_seconds(pid)
            answer = _wrk(script, connections, seconds)
            found |= {f"{connections} {key}": value for key, value in answer.items()}
            if connections == 16:
                found["CPU ms"] = 1_000 * (servers.cpu_seconds(pid) - before) / (answer["rate"] * seconds)
        found["MiB"] = servers.memory_mib(pid)
    return found


def _wrk(script: Path, connections: int, seconds: int) -> dict[str, float]:
    """Return requests per second, and the 50th and 99th percentile of latency in milliseconds."""
    # By default wrk gives up after 2 s, which a worker may take to start.
    command = (
        f"wrk -t1 -c{connections} -d{seconds}s --timeout 10s --latency -s {script} http://127.0.0.1:{servers.PORT}"
    )
    text = subprocess.run(f"{command}/predict".split(), stdout=subprocess.PIPE, text=True, check=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise SystemExit(f"expected only responses of status 200, found:\n{text}")
    latencies = re.findall(r"(\d+)%\s+([\d.]+)(us|ms|s)", text)
    ms = {f"p{percent}": float(value) * MS_PER_UNIT[unit] for percent, value, unit in latencies}
    (rate,) = re.findall(r"Requests/sec:\s+([\d.]+)", text)
    return {"rate": float(rate), "p50": ms["p50"], "p99": ms["p99"]}


def _versions() -> dict[str, str]:
    """Return the installed version of each package that is compared."""
    code = "import importlib.metadata as m, sys; print(*map(m.version, sys.argv[1:]))"
    found: dict[str, str] = {}
    for folder, names in (
        (servers.OURS_BIN, ["onnxruntime", "flask", "gunicorn", "gevent"]),
        (servers.BENCH_BIN, ["fastapi", "uvicorn", "litserve", "prometheus-client"]),
    ):
        done = subprocess.run([folder / "python", "-c", code, *names], stdout=subprocess.PIPE, text=True, check=True)
        found |= dict(zip(names, done.stdout.split(), strict=True))
    return found


def figures(result: dict[str, Any]) -> dict[str, str]:
    """Return the figures of docs/benchmarks.md from the content of docs/benchmarks-serve.json."""
    ours, rows = result["servers"][OURS.name], []
    for server in (OURS, *BARE, *WITH_DUTIES):
        values = result["servers"][server.name]
        row = [f"**{server.name}**" if server == OURS else server.name]
        for connections in (16, 64):
            rate = values[f"{connections} rate"]
            ratio = f"{ours[f'{connections} rate']['mean'] / rate['mean']:.2f} ×" if server != OURS else ""
            row += [pages.plus_minus(rate, 0), ratio]
        row += [pages.plus_minus(values["16 p50"], 1), pages.plus_minus(values["16 p99"], 1)]
        rows.append([*row, pages.plus_minus(values["CPU ms"], 2), f"{values['MiB']['mean']:.0f}"])
    columns = ["", "requests/s at 16", "ours ÷ it", "requests/s at 64", "ours ÷ it", "p50 at 16, ms", "p99 at 16, ms"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    measured = (
        f"Measured on {result['date']} at revision {result['source_revision'][:7]}: {result['device']}; {versions}; "
        f"{result['rounds']} rounds of {result['seconds']} seconds per measurement, after a warm-up."
    )
    return {"serving": f"{table([*columns, 'CPU per request, ms', 'MiB'], rows)}\n\n{measured}"}


if __name__ == "__main__":
    main()
