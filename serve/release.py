"""A release: the graph that may be served, and the manifest that vouches for it."""

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from model.contract import MANIFEST, ContractError, Manifest, parse_manifest

PATIENCE = 60  # seconds


class ModelError(ValueError):
    """A model that may not be served; the message names the file, the expected and the found."""


@dataclass(frozen=True)
class Release:
    """A graph, as bytes whose SHA-256 is the manifest's."""

    manifest: Manifest
    graph: bytes

    @property
    def version(self) -> str:
        """Return what tells this model from another of the same name: the first 12 digits of its graph's SHA-256."""
        return self.manifest.onnx.sha256[:12]


def read(folder: Path) -> Release:
    """Return the release in `folder`. Raises ModelError where a file is missing, unreadable or altered."""
    path = folder / MANIFEST
    try:
        manifest = parse_manifest(_read(path))
    except ContractError as error:
        raise ModelError(f"{path}: expected the manifest of a verified export, found: {error}") from error
    file = folder / manifest.onnx.file
    if file.parent != folder:
        raise ModelError(f"{path}: expected onnx.file to be a file beside it, found {manifest.onnx.file!r}")
    graph = _read(file)
    found = hashlib.sha256(graph).hexdigest()
    if found != manifest.onnx.sha256:
        raise ModelError(f"{file}: expected SHA-256 {manifest.onnx.sha256}, as {path} says, found {found}")
    return Release(manifest, graph)


def verify(folder: Path) -> Release:
    """Return the release in `folder` once a process of its own has loaded its graph and predicted with it.

    So gunicorn's master learns whether a model can be served without loading it: no session, and no thread of one, is
    there when it forks, and a graph that crashes the runtime takes the checking process only. Raises ModelError.
    """
    release = read(folder)
    check = [sys.executable, "-m", "serve.predictor"]
    try:
        done = subprocess.run(check, input=release.graph, capture_output=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        file = folder / release.manifest.onnx.file
        raise ModelError(f"{file}: expected a graph that loads within {PATIENCE} s, found one that does not") from error
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise ModelError(f"{folder / release.manifest.onnx.file}: {reason[-1]}")
    return release


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: expected a file of a verified export, found: {error.strerror}") from error
