"""Latency of other clients and memory of a worker while a hostile client sends a request.

`python -m benchmarks.hostile` starts the service with one worker and its default configuration, sends each request of
tests/serve/hostile.py in turn while three other clients send requests without pause, and writes docs/hostile.md and
.json. It takes about four minutes.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.servers import PORT, Server, running
from tests.serve.hostile import CASES, Bystander, attack
from train.files import to_json, write_together
from train.markdown import table
from train.paths import ROOT

AIM_SECONDS, AIM_MIB = 2, 512

HEAD = f"""# Hostile requests, measured

`make hostile` writes this page: one worker (`WEB_CONCURRENCY=1`), the default configuration, {{count}} requests of
the kinds that once blocked or killed a worker, one after the other ([their generator](../tests/serve/hostile.py)).
Meanwhile three other clients send one request after the other, on new connections: for a constant, with raw pixels and
with a picture. *Others wait* is their longest latency. *Memory* is the peak of the worker and its decoding processes
together. The limits are {AIM_SECONDS} s and {AIM_MIB} MiB.

"""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    requests = []
    service = Server("ours", [sys.executable, "-m", "serve"], ROOT, environment={"WEB_CONCURRENCY": "1"})
    with running(service) as master:
        worker = _worker(master)
        for name, case in CASES.items():
            started = time.monotonic()
            with Bystander(("127.0.0.1", PORT), worker) as bystander:
                status = attack(("127.0.0.1", PORT), case())
            seconds = time.monotonic() - started
            if _worker(master) != worker or set(bystander.statuses) != {200}:
                sys.exit(f"{name}: expected worker {worker} and 200 for others, found {dict(bystander.statuses)}")
            figures = {"seconds": seconds, "others_wait": bystander.slowest, "memory_mib": bystander.memory}
            requests.append({"name": name, "answer": str(status), **figures})
            print(requests[-1], flush=True)
    result = {"cores": len(os.sched_getaffinity(0)), "requests": requests}
    write_together(options.out, {"hostile.md": markdown(result).encode(), "hostile.json": to_json(result)})


def markdown(figures: dict[str, Any]) -> str:
    """Return docs/hostile.md from the content of docs/hostile.json."""
    requests = figures["requests"]
    waits, sizes = ([one[name] for one in requests] for name in ("others_wait", "memory_mib"))
    rows = [
        [one["name"], one["answer"], f"{one['seconds']:.1f} s", f"{wait:.2f} s", f"{size:.0f} MiB"]
        for one, wait, size in zip(requests, waits, sizes, strict=True)
    ]
    result = (
        f"Of {len(rows)} requests, others waited {max(waits):.2f} s at most (median {statistics.median(waits):.2f} s) "
        f"and the memory was {max(sizes):.0f} MiB at most, on {figures['cores']} cores; the worker survived all of "
        "them.\n\n"
    )
    measured = table(["request", "answer", "open for", "others wait", "memory"], rows)
    return f"{HEAD.format(count=len(rows))}{result}{measured}\n"


def _worker(master: int) -> int:
    """Return the process id of the worker; 0 if there is none at the moment, because it was killed."""
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return int(children[0]) if children else 0


if __name__ == "__main__":
    main()
