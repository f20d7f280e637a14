"""The model of every peer: one ONNX Runtime session that uses one thread."""

import os

import numpy as np
import onnxruntime as ort

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["GRAPH"], options)


def predict_image(rows):
    """Return the prediction for an image: 28 rows of 28 numbers, 0–255."""
    image = np.array(rows, dtype=np.uint8)[None]
    probabilities, digits = session.run(["probabilities", "digit"], {"image": image})
    return {
        "digit": int(digits[0]),
        "confidence": float(probabilities.max()),
        "probabilities": probabilities[0].tolist(),
    }
