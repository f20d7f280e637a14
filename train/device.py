"""The training device: select CPU or GPU and describe it."""

import platform
from pathlib import Path

import torch

from model.cores import available_cores
from train.errors import SettingsError


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
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
