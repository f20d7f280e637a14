"""What gunicorn's processes share: the release that the master verified, and the application a worker makes of it."""

import mmap
import os
import sys
from typing import TYPE_CHECKING

from serve import create_app
from serve.config import Config, ConfigError
from serve.release import Release, verify

if TYPE_CHECKING:
    from flask import Flask

try:
    config = Config.from_environment(os.environ)
except ConfigError as error:
    sys.exit(f"serve: {error}")
release: Release | None = None  # set in the master, inherited by each worker when it is forked
deaths = memoryview(mmap.mmap(-1, 8)).cast("Q")  # [1], of workers: memory that the master writes and all of them read


def load() -> None:
    """Verify the release in MODEL_DIR and make it the one that workers serve from now on. Raises ModelError."""
    global release
    release = verify(config.model_dir)


def application() -> "Flask":
    """Return a worker's application."""
    return create_app(config, release)
