"""How a model answers: a Flask service around one exported model, in ONNX Runtime. Imports neither torch nor train.

Run it with `python -m serve`, or `make serve`.
"""

import os
from typing import TYPE_CHECKING

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported: nothing of ours phones home

if TYPE_CHECKING:
    from flask import Flask

    from serve.config import Config
    from serve.release import Release


def create_app(config: "Config | None" = None, release: "Release | None" = None) -> "Flask":
    """Return the service as a Flask application.

    Without `config` it is read from the environment; without `release` it is read from `config.model_dir`. Raises
    ConfigError and ModelError, each with one line that says what was expected and found.
    """
    # Imported here and not above: gunicorn's master imports this package too, and what a worker uses is to be imported
    # in the worker, once gevent has patched the standard library.
    from serve.app import build
    from serve.config import Config
    from serve.release import read

    config = config or Config.from_environment(os.environ)
    return build(config, release or read(config.model_dir))
