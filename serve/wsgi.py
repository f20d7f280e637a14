"""gunicorn's entry point, and the state that its master shares with the workers.

The master imports this module. It must not import what gevent has to patch first, so Flask, NumPy and ONNX Runtime are
imported in the worker.
"""

import mmap
import os
import sys
from typing import TYPE_CHECKING

from serve.config import Config, ConfigError
from serve.release import Release, verify

if TYPE_CHECKING:
    from flask import Flask

try:
    config = Config.from_environment(os.environ)
except ConfigError as error:
    sys.exit(f"serve: {error}")
release: Release | None = None  # set by the master; a worker inherits it when it is forked
number = 0  # of the worker, likewise
deaths = memoryview(mmap.mmap(-1, 8)).cast("Q")  # [1]: number of dead workers; shared memory, written by the master


def load() -> None:
    """Verify the release in MODEL_DIR; workers that are forked from now on serve it. Raises ModelError."""
    global release
    release = verify(config.model_dir)


def application() -> "Flask":
    """Return the application of a worker."""
    from prometheus_client import values

    # Names the metrics files. Before serve.metrics is imported.
    values.ValueClass = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
    from serve.app import create_app

    return create_app(config, release)
