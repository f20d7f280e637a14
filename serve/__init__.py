"""HTTP service for one exported model, with Flask, gunicorn and ONNX Runtime. It never imports torch or train.

`python -m serve` or `make serve` starts the service. serve.app creates the Flask application; serve.server.master runs
the application with gunicorn.
"""

import os

# onnxruntime and numpy read these variables when they are imported, so the variables are set before the imports.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # with 1, OpenBLAS, which NumPy uses, starts no thread pool
