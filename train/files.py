"""Files written whole: whoever opens one finds the old content or the new, never a half."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from train.errors import TrainError


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file beside it, creating folders as needed.

    Raises TrainError, naming the file and the system's reason, where that cannot be done.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise TrainError(f"cannot write {path}: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8; see write_bytes."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; see write_bytes."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return the JSON value in `path`. Raises TrainError where it cannot be read or is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise TrainError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise TrainError(f"{path}: expected JSON, found: {error}") from error


def sha256(content: bytes) -> str:
    """Return the SHA-256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def check_writable(folder: Path) -> None:
    """Raise TrainError where no file can be written in `folder`, before hours are spent on what goes there."""
    probe = folder / ".writable"
    write_bytes(probe, b"")
    probe.unlink()
