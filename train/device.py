"""Where the training runs, and what makes it fast there."""

import logging
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from model.cores import available_cores
from train.errors import SettingsError

MEMORY = 2_000 * 2**20  # bytes; measured on a CPU: 1,500 MiB are too few to verify an export


def pick(name: str) -> torch.device:
    """Return the device for `auto` (CUDA where there is one), `cpu` or `cuda`, and set torch up for it.

    Torch knows nothing of a container's CPU limit, and would take a thread for each of the machine's cores. Raises
    SettingsError for `cuda` where torch finds no GPU that it can use.
    """
    torch.set_num_threads(min(torch.get_num_threads(), available_cores()))
    # Convolutions would round to tf32 by default: what is trained here is compared with fp32 on the CPU.
    torch.backends.cudnn.allow_tf32 = False
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise SettingsError("--device cuda: expected a CUDA GPU, found none; --device auto takes the CPU instead")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def check_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> None:
    """Raise SettingsError where this machine, or its container, may use less memory than a run needs.

    Said at the start: past a container's limit the kernel ends a run without a word, after all its training, when the
    export is verified.
    """
    if (found := memory(cgroup)) < MEMORY:
        raise SettingsError(f"expected at least {MEMORY // 2**20:,} MiB of memory, found {found // 2**20:,} MiB")


def memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of memory that this machine has, or its container may use if fewer.

    Reads cgroup v2's memory.max, or v1's memory.limit_in_bytes.
    """
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # not there, or "max"
            found = min(found, int(limit.read_text()))
    return found


def describe(device: torch.device) -> str:
    """Return the device in words."""
    if device.type == "cuda":
        return f"GPU ({torch.cuda.get_device_name(device)}), fp32"
    threads = torch.get_num_threads()
    return f"CPU ({_processor()}), {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def compiled(network: nn.Module, sample: Tensor) -> nn.Module:
    """Return `network` compiled for training batches like `sample`; as it is, and say so, where that fails.

    On a GPU its kernels are replayed as CUDA graphs: launching them one by one would take longer than they do. The
    weights are shared with `network`, and are left as they were.
    """
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    try:
        faster: nn.Module = torch.compile(network, dynamic=False, mode="reduce-overhead")  # type: ignore[assignment]
        # The first call compiles and warms up, the second records the graphs, the third replays them: here, where
        # failing costs nothing. As in training, the logits outlive the backward pass.
        for _ in range(3):
            network.zero_grad()
            logits = faster(sample)
            logits.sum().backward()
        if sample.is_cuda:
            torch.cuda.synchronize(sample.device)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        print(f"note: torch.compile failed ({reason}); training goes on uncompiled, slower", file=sys.stderr)
        torch._dynamo.reset()
        faster = network
    network.zero_grad()
    network.load_state_dict(before)
    return faster
