"""The memory limit of the machine or its container, and the memory that a training needs."""

import os
from contextlib import suppress
from pathlib import Path

REQUIRED = 2_000 * 2**20  # bytes per training; measured on a CPU: 1,500 MiB are too few to verify an export


def available_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of memory of this machine, or of its container if fewer.

    Reads cgroup v2's memory.max, or v1's memory.limit_in_bytes.
    """
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such file, or "max"
            found = min(found, int(limit.read_text()))
    return found
