"""The training device: select CPU or GPU and describe it."""

import platform
from functools import cache
from pathlib import Path

import torch

from model.cores import available_cores
from train.errors import SettingsError


def pick(name: str) -> torch.device:
    """Return the device for `auto` (a usable GPU, else the CPU), `cpu` or `cuda`, and configure torch for it.

    Limits torch's threads to the container's CPU limit, which torch itself ignores. Raises SettingsError for `cuda` if
    there is no usable GPU; `auto` says in one line if torch has found one that it cannot use.
    """
    torch.set_num_threads(min(torch.get_num_threads(), available_cores()))
    # Full fp32: exports are compared with fp32 on the CPU, and convolutions would use tf32 by default.
    torch.backends.cudnn.allow_tf32 = False
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not (fault := _gpu_fault()):
        return torch.device("cuda")
    if name == "cuda":
        raise SettingsError(f"--device cuda: expected a CUDA GPU, found {fault}; use --device auto or cpu")
    _print_once(f"--device auto: expected a CUDA GPU, found {fault}; training on the CPU")
    return torch.device("cpu")


_print_once = cache(print)


@cache
def _gpu_fault() -> str:
    """Return what is wrong with the GPU; nothing if a kernel runs on it."""
    if not torch.cuda.is_available():
        return "none"
    try:
        torch.ones(1, device="cuda").add(1).item()
    except (RuntimeError, AssertionError) as error:  # a driver too old, a GPU without kernels in this torch
        return f"one that torch {torch.__version__} cannot use ({str(error).partition(chr(10))[0]})"
    return ""


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
