"""Run make, and look up processes."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make in the repository, without the environment variables of `make test`, which may run these tests."""
    environ = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environ, capture_output=True, text=True)


def alive(group: int) -> bool:
    """Return whether any process of the process group `group` is still running."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended
            state, _, of, *_ = path.read_text().rpartition(")")[2].split()
            if state != "Z" and int(of) == group:
                return True
    return False


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
