"""How many CPU cores a process may use.

It is here because training and serving both ask, and this room is the one that both may import. Imports no torch.
"""

import os
from pathlib import Path


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many cores this process may use, at least 1: its affinity, or its container's CPU limit if lower.

    A limit that is not a whole number is rounded down. Reads cgroup v2's cpu.max, or v1's quota and period
    (https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files).
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        if (limit := cgroup / "cpu.max").exists():
            quota, period = limit.read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if quota != "max" and int(quota) > 0:
            cores = min(cores, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # no cgroup that can be read: no limit that is known
    return max(1, cores)
