"""HTTP service for one exported model: Flask, gunicorn and ONNX Runtime. Imports neither torch nor train.

`python -m serve` or `make serve` starts it. serve.app has the Flask application, serve.wsgi gunicorn's entry point.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # must be set before onnxruntime is imported
