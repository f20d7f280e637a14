"""Where a training comes from: the commit of the source, the versions of the libraries, the device."""

import os
import subprocess
from functools import cache, partial
from importlib.metadata import version
from platform import python_version
from typing import Any

from torch import nn

from train import device as devices
from train import paths

LIBRARIES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy", "safetensors")


def provenance(network: nn.Module) -> dict[str, Any]:
    """Return what made `network` what it is, beside its settings, as JSON values."""
    return {
        "source_revision": source_revision(),
        "versions": {"python": python_version()} | {library: version(library) for library in LIBRARIES},
        "device": devices.describe(next(network.parameters()).device),
    }


@cache  # the source that runs is the one that was there at the start
def source_revision() -> str:
    """Return the commit of this source, with `-dirty` where files differ from it; `unknown` outside a checkout.

    An image has no checkout: there SOURCE_REVISION states it.
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
