"""Files: atomic writes (a reader finds the old content or the new one, never a part), and a lock for a folder."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from train import TrainError


def write_together(folder: Path, files: dict[str, bytes]) -> None:
    """Write `files` (content by name) as one set. If the last file exists, then all files of the set exist.

    Everything is written under temporary names, so a full disk leaves the old files unchanged. Then the old last file
    is deleted, and the new files are renamed, the last one last. Raises TrainError if a file cannot be written.
    """
    temporaries = {folder / name: folder / f".{name}.tmp" for name in files}
    *others, last = temporaries
    path = folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for path, content in zip(temporaries, files.values(), strict=True):
                with temporaries[path].open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            if others:
                last.unlink(missing_ok=True)
            for path, temporary in temporaries.items():
                temporary.replace(path)
        finally:
            for temporary in temporaries.values():
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise TrainError(f"cannot write {path}: {error.strerror}") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically and create its folders; see write_together."""
    write_together(path.parent, {path.name: content})


def to_json(value: Any) -> bytes:
    """Return `value` as indented JSON. Raises ValueError for NaN and infinity, because JSON cannot represent them."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def read_bytes(path: Path) -> bytes:
    """Return the content of `path`. Raises TrainError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrainError(f"cannot read {path}: {error.strerror}") from error


def sha256(content: bytes) -> str:
    """Return the SHA-256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder` against other runs, and create it if needed. The system releases the lock when the process ends.

    Raises TrainError if another run holds the lock, or if the folder is not writable.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise TrainError(f"cannot write {path}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainError(f"{folder} is in use by another run: wait for its end, or choose another --out") from error
        yield
