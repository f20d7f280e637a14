"""The machine: its device for training, its memory, and the provenance of a training, which a checkpoint records."""

import os
import platform
import subprocess
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.cores import available_cores
from train import TrainError, paths

# Bytes that each training needs, including the verification of the export. On a CPU, 1,500 MiB were too few.
REQUIRED_MEMORY = 2_000 * 2**20
LIBRARIES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy", "safetensors")


@cache
def pick(name: str) -> torch.device:
    """Return the device for `auto` (a usable GPU, else the CPU), `cpu` or `cuda`, and configure torch for it.

    Limits torch's threads to the container's CPU limit, which torch itself ignores. Raises TrainError for `cuda` if
    there is no usable GPU; `auto` prints one line if torch finds a GPU that it cannot use.
    """
    torch.set_num_threads(min(torch.get_num_threads(), available_cores()))
    # Use full fp32: exports are compared with fp32 on the CPU, but convolutions would use tf32 by default.
    torch.backends.cudnn.allow_tf32 = False
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not (fault := _gpu_fault()):
        return torch.device("cuda")
    if name == "cuda":
        raise TrainError(f"--device cuda: expected a CUDA GPU, found {fault}; use --device auto or cpu")
    print(f"--device auto: expected a CUDA GPU, found {fault}; training on the CPU")
    return torch.device("cpu")


def _gpu_fault() -> str:
    """Return, for a message, what was found instead of a usable GPU, or an empty text if a kernel runs on the GPU."""
    if not torch.cuda.is_available():
        return "none"
    try:
        torch.ones(1, device="cuda").add(1).item()
    except (RuntimeError, AssertionError) as error:  # for example, torch has no kernels for this GPU
        return f"one that torch {torch.__version__} cannot use ({str(error).partition(chr(10))[0]})"
    return ""


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


def available_memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory of this machine in bytes, or the memory limit of its container if that is lower.

    Reads cgroup v2's memory.max, or v1's memory.limit_in_bytes.
    """
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # OSError: no such file; ValueError: "max", that is, no limit
            found = min(found, int(limit.read_text()))
    return found


def provenance(network: nn.Module) -> dict[str, Any]:
    """Return the source revision, library versions and device of `network`'s training, as JSON values."""
    return {
        "source_revision": source_revision(),
        "versions": {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES},
        "device": describe(next(network.parameters()).device),
    }


@cache  # the first result stays valid: later changes of the files do not change the running code
def source_revision() -> str:
    """Return the Git commit, with `-dirty` if model/*.py or train/ differ from it; `unknown` outside a checkout.

    The environment variable SOURCE_REVISION takes precedence: container images have no checkout.
    """
    if stated := os.environ.get("SOURCE_REVISION"):
        return stated
    git = partial(subprocess.run, cwd=paths.ROOT, capture_output=True, text=True, check=True)
    try:
        revision = git(["git", "rev-parse", "HEAD"]).stdout
        changes = git(["git", "status", "--porcelain", "--", "model/*.py", "train"]).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision.strip() + ("-dirty" if changes else "")
