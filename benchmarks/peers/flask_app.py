"""A plain Flask service of the model, as in a tutorial: `gunicorn --workers 2 --threads 4 flask_app:app`."""

import io
import os

import numpy as np
import onnxruntime as ort
from flask import Flask, jsonify, request
from PIL import Image

app = Flask(__name__)
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["GRAPH"], options)


@app.route("/predict", methods=["POST"])
def predict():
    """Predict the digit of one image, in JSON or as a picture."""
    if request.is_json:
        image = np.array(request.get_json()["image"], dtype=np.uint8)
    else:
        image = np.array(Image.open(io.BytesIO(request.data)).convert("L"))
    probabilities, digits = session.run(["probabilities", "digit"], {"image": image[None]})
    return jsonify(digit=int(digits[0]), confidence=float(probabilities.max()), probabilities=probabilities[0].tolist())


@app.route("/healthz")
def health():
    """Return a constant."""
    return jsonify(status="ok")


if "DUTIES" in os.environ:
    from duties import add_to_flask

    add_to_flask(app)
