"""The number of CPU cores that a process may use, for training and serving. This file does not import torch."""

import os
from pathlib import Path


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of cores in the CPU affinity, or the container's CPU limit if this is lower; at least 1.

    A fractional limit is rounded down. The limit is in cpu.max of cgroup v2, or in the quota and period of cgroup v1
    (https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files).
    """
    affinity = getattr(os, "sched_getaffinity", None)  # exists on Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        if (limit := cgroup / "cpu.max").exists():
            quota, period = limit.read_text().split()
        else:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if quota != "max" and int(quota) > 0:
            cores = min(cores, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # the limit is missing or unreadable: only the affinity counts
    return max(1, cores)
