"""The machine that trains: select CPU or GPU, describe it, check its memory, compile a network for a GPU."""

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

REQUIRED_MEMORY = 2_000 * 2**20  # bytes per training; measured on a CPU: 1,500 MiB are too few to verify an export


def pick(name: str) -> torch.device:
    """Return the device for `auto` (CUDA if available), `cpu` or `cuda`, and configure torch for it.

    Limits torch's threads to the container's CPU limit, which torch itself ignores. Raises SettingsError for `cuda` if
    torch finds no usable GPU.
    """
    torch.set_num_threads(min(torch.get_num_threads(), available_cores()))
    # Full fp32: exports are compared with fp32 on the CPU, and convolutions would use tf32 by default.
    torch.backends.cudnn.allow_tf32 = False
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise SettingsError("--device cuda: expected a CUDA GPU, found none; use --device auto or cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def describe(device: torch.device) -> str:
    """Return a description of the device, for example "CPU (AMD EPYC), 2 threads"."""
    if device.type == "cuda":
        return f"GPU ({torch.cuda.get_device_name(device)}), fp32"
    threads = torch.get_num_threads()
    return f"CPU ({_processor()}), {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.machine()


def check_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> None:
    """Raise SettingsError if less memory than REQUIRED_MEMORY is available.

    Called at the start: otherwise the kernel kills the run without a message after all its training, when the export is
    verified.
    """
    if (found := available_memory(cgroup)) < REQUIRED_MEMORY:
        raise SettingsError(
            f"expected at least {REQUIRED_MEMORY // 2**20:,} MiB of memory, found {found // 2**20:,} MiB"
        )


def available_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of memory of this machine, or of its container if fewer.

    Reads cgroup v2's memory.max, or v1's memory.limit_in_bytes.
    """
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such file, or "max"
            found = min(found, int(limit.read_text()))
    return found


def compiled(network: nn.Module, sample: Tensor) -> nn.Module:
    """Compile `network` for training batches like `sample`; if that fails, print a note and return it unchanged.

    Its kernels are replayed as CUDA graphs, because launching such small kernels one by one takes longer than running
    them. The compiled network shares its weights with `network`; they keep their values.
    """
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    try:
        faster: nn.Module = torch.compile(network, dynamic=False, mode="reduce-overhead")  # type: ignore[assignment]
        # The first call compiles and warms up, the second records the graphs, the third replays them, so that any
        # failure happens here. As in training, the logits are still referenced after the backward pass.
        for _ in range(3):
            network.zero_grad()
            logits = faster(sample)
            logits.sum().backward()
        if sample.is_cuda:
            torch.cuda.synchronize(sample.device)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        print(f"note: torch.compile failed ({reason}); training continues uncompiled, slower", file=sys.stderr)
        torch._dynamo.reset()
        faster = network
    network.zero_grad()
    network.load_state_dict(before)
    return faster
