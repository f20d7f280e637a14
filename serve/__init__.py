"""HTTP service for one exported model: Flask, gunicorn and ONNX Runtime. Imports neither torch nor train.

`python -m serve` or `make serve` starts it. serve.app creates the Flask application; serve.server.master runs it with
gunicorn.
"""

import os

# These must be set before onnxruntime and numpy are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # no thread pool for NumPy
