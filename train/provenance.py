"""Provenance of a training: source commit, library versions and device."""

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
    """Return the source revision, library versions and device of `network`'s training, as JSON values."""
    return {
        "source_revision": source_revision(),
        "versions": {"python": python_version()} | {library: version(library) for library in LIBRARIES},
        "device": devices.describe(next(network.parameters()).device),
    }


@cache  # later changes of the files do not change the running code
def source_revision() -> str:
    """Return the Git commit of this source, with `-dirty` if files differ from it; `unknown` outside a checkout.

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
