"""A plain Flask service of the model, as in a tutorial: `gunicorn --workers 2 --threads 4 flask_app:app`."""

import os

from flask import Flask, request
from predictor import predict_image

app = Flask(__name__)


@app.route("/predict", methods=["POST"])
def predict():
    """Predict the digit of an image in JSON."""
    return predict_image(request.get_json()["image"])


if "DUTIES" in os.environ:
    from duties import add_to_flask

    add_to_flask(app)
