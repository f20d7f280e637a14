"""The plainest Flask service of the model, as a tutorial has it: `gunicorn --workers 2 --threads 4 flask_app:app`."""

import io
import os

import numpy as np
import onnxruntime as ort
from flask import Flask, jsonify, request
from PIL import Image

app = Flask(__name__)
session = ort.InferenceSession(os.environ["GRAPH"])


@app.route("/predict", methods=["POST"])
def predict():
    """Predict the digit of one image."""
    if request.is_json:
        image = np.array(request.get_json()["image"], dtype=np.uint8)
    else:
        image = np.array(Image.open(io.BytesIO(request.data)).convert("L"))
    probabilities, digits = session.run(None, {"image": image[None]})
    return jsonify(digit=int(digits[0]), confidence=float(probabilities.max()), probabilities=probabilities[0].tolist())


@app.route("/healthz")
def health():
    """Answer a constant."""
    return jsonify(status="ok")
