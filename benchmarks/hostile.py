"""How long others wait, and how much memory a worker needs, while a hostile client sends a request.

`python -m benchmarks.hostile` starts the service with one worker and its default configuration, sends each request of
tests/serve/hostile.py in turn while three other clients ask all the time, and writes docs/hostile.md. It takes about
four minutes.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.polling import answers, wait
from tests.serve.hostile import CASES, Bystander, attack
from train.files import write_bytes
from train.markdown import table

ROOT = Path(__file__).resolve().parents[1]
PORT = 9322
AIM_SECONDS, AIM_MIB = 2, 512

HEAD = f"""# Hostile requests, measured

`make hostile` writes this page: one worker (`WEB_CONCURRENCY=1`), the default configuration, {len(CASES)} requests of
the kinds that once held or killed a worker, one after the other ([their generator](../tests/serve/hostile.py)).
Meanwhile three other clients each ask one request after the other, on new connections: a constant, raw pixels and a
picture. *Others wait* is the slowest of their answers. *Memory* is the most that the worker and its decoding processes
have in RAM together. Promised: {AIM_SECONDS} s and {AIM_MIB} MiB.

"""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    rows, waits, sizes = [], [], []
    with _service() as master:
        worker = _worker(master)
        for name, case in CASES.items():
            started = time.monotonic()
            with Bystander(("127.0.0.1", PORT), worker) as bystander:
                status = attack(("127.0.0.1", PORT), case())
            seconds = time.monotonic() - started
            if _worker(master) != worker or set(bystander.statuses) != {200}:
                sys.exit(f"{name}: expected worker {worker} and 200 for others, found {dict(bystander.statuses)}")
            row = [f"{seconds:.1f} s", f"{bystander.slowest:.2f} s", f"{bystander.memory:.0f} MiB"]
            rows.append([name, str(status), *row])
            print(*rows[-1], sep=", ", flush=True)
            waits.append(bystander.slowest)
            sizes.append(bystander.memory)
    result = (
        f"Of {len(rows)} requests, others waited {max(waits):.2f} s at most (median {statistics.median(waits):.2f} s) "
        f"and the memory was {max(sizes):.0f} MiB at most, on {len(os.sched_getaffinity(0))} cores; the worker lived "
        "through all of them.\n\n"
    )
    measured = table(["request", "answer", "open for", "others wait", "memory"], rows)
    write_bytes(options.out / "hostile.md", f"{HEAD}{result}{measured}\n".encode())


@contextmanager
def _service() -> Iterator[int]:
    with socket.socket() as client:
        if client.connect_ex(("127.0.0.1", PORT)) == 0:
            sys.exit(f"expected port {PORT} free, found a server there")
    environment = {"PATH": os.environ["PATH"], "PORT": str(PORT), "WEB_CONCURRENCY": "1"}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([sys.executable, "-m", "serve"], cwd=ROOT, env=environment, stderr=log)
        try:
            wait(lambda: answers(f"http://127.0.0.1:{PORT}"), 60, lambda: "no answer")
            yield process.pid
        finally:
            process.terminate()
            process.wait(60)


def _worker(master: int) -> int:
    return int(Path(f"/proc/{master}/task/{master}/children").read_text().split()[0])


if __name__ == "__main__":
    main()
