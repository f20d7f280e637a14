"""Lock an output folder against concurrent runs."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from train.errors import SettingsError, TrainError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock `folder` against other runs, and create it if needed. The system releases the lock when the process ends.

    Raises SettingsError if another run holds the lock, and TrainError if the folder is not writable, before any
    training.
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
            raise SettingsError(f"{folder} is in use by another run: wait for it, or choose another --out") from error
        yield
