"""Read and verify a release: the ONNX graph and its manifest."""

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from model.contract import MANIFEST, ContractError, Manifest, parse_manifest

VERIFY_TIMEOUT_S = 60


class ModelError(ValueError):
    """A model cannot be served. The message states what was expected, what was found and, if known, the file."""


@dataclass(frozen=True)
class Release:
    """A manifest, and the graph whose SHA-256 the manifest states."""

    manifest: Manifest
    graph: bytes

    @property
    def version(self) -> str:
        """Return the model version: the first 12 hexadecimal digits of the graph's SHA-256."""
        return self.manifest.onnx.sha256[:12]


def read(folder: Path) -> Release:
    """Return the release in `folder`. Raises ModelError if a file is missing, unreadable, invalid or altered."""
    path = folder / MANIFEST
    try:
        manifest = parse_manifest(_read(path))
    except ContractError as error:
        raise ModelError(f"{path}: expected the manifest of a verified export, found: {error}") from error
    file = folder / manifest.onnx.file
    if file.parent != folder or not file.name.isprintable():
        raise ModelError(f"{path}: expected onnx.file to name a file in the same folder, found {manifest.onnx.file!r}")
    graph = _read(file)
    found = hashlib.sha256(graph).hexdigest()
    if found != manifest.onnx.sha256:
        raise ModelError(f"{file}: expected SHA-256 {manifest.onnx.sha256}, as {path} states, found {found}")
    return Release(manifest, graph)


def verify(folder: Path) -> Release:
    """Read the release in `folder`, and run its graph in a separate process. Raises ModelError if either step fails.

    gunicorn's master process must not load the graph. Otherwise the master would fork workers while the threads of ONNX
    Runtime exist, and a graph that crashes ONNX Runtime would crash the master.
    """
    release = read(folder)
    check, root = [sys.executable, "-m", "serve.predictor"], Path(__file__).parent.parent
    try:
        subprocess.run(check, input=release.graph, capture_output=True, timeout=VERIFY_TIMEOUT_S, cwd=root, check=True)
    except subprocess.SubprocessError as error:  # the process failed, was killed by a signal, or timed out
        reason = (getattr(error, "stderr", None) or str(error).encode()).decode(errors="replace").strip().splitlines()
        raise ModelError(f"{folder / release.manifest.onnx.file}: {reason[-1]}") from error
    return release


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: expected a file of a verified export, found: {error.strerror}") from error
