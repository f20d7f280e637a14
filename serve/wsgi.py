"""What gunicorn's processes share: the release that the master verified, and the application a worker makes of it."""

import logging
import os
import sys
from typing import TYPE_CHECKING

from serve import create_app
from serve.config import Config, ConfigError
from serve.release import ModelError, Release, verify

if TYPE_CHECKING:
    from flask import Flask

logger = logging.getLogger("gunicorn.error")
try:
    config = Config.from_environment(os.environ)
except ConfigError as error:
    sys.exit(f"serve: {error}")
release: Release | None = None  # set in the master, inherited by each worker when it is forked


def load() -> None:
    """Verify the release in MODEL_DIR and make it the one that workers serve from now on. Raises ModelError."""
    global release
    release = verify(config.model_dir)


def reload() -> None:
    """As load, but keep serving the release of before, and say so, where the new one does not verify."""
    try:
        load()
    except ModelError as error:
        message = "the new model is refused, the one of before is served: %s"
        logger.error(message, error)  # noqa: TRY400  # its one line says it all


def application() -> "Flask":
    """Return a worker's application."""
    return create_app(config, release)
