"""The number of CPU cores that a process may use, for training and serving. This file imports no torch."""

import os
from pathlib import Path


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of cores in the process's CPU affinity, or the container's CPU limit if lower; at least 1.

    A fractional limit is rounded down. Reads cgroup v2's cpu.max, or v1's quota and period
    (https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files).
    """
    affinity = getattr(os, "sched_getaffinity", None)  # on Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        if (limit := cgroup / "cpu.max").exists():
            quota, period = limit.read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if quota != "max" and int(quota) > 0:
            cores = min(cores, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # no readable cgroup: no limit is known
    return max(1, cores)
