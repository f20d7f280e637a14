"""POST /predict: decode → predict → encode."""

import msgspec
import numpy as np
from flask import Blueprint, Request, Response, request
from werkzeug.exceptions import BadRequest

from serve import observe
from serve.bodies import read_images
from serve.config import Config
from serve.decoder import DecoderPool
from serve.predictor import Predictor
from serve.release import Release


class Model(msgspec.Struct):
    """Which model answered."""

    name: str
    version: str


class Prediction(msgspec.Struct, omit_defaults=True):
    """What the model says of one image."""

    digit: int
    confidence: float
    probabilities: list[float]
    pixels: list[list[int]] | msgspec.UnsetType = msgspec.UNSET


class Answer(msgspec.Struct):
    """What /predict answers."""

    predictions: list[Prediction]
    model: Model


def blueprint(config: Config, release: Release, predictor: Predictor) -> Blueprint:
    """Return the route."""
    routes = Blueprint("predict", __name__)
    decoders = DecoderPool(config.max_pixels)
    model = Model(release.manifest.model, release.version)
    encoder = msgspec.json.Encoder()

    @routes.post("/predict")
    def predict() -> Response:
        # Flask's proxy looks the request up at every attribute: here it is looked up once.
        asked: Request = request._get_current_object()  # type: ignore[attr-defined]
        with_pixels = _flag(asked, "pixels")
        images = read_images(asked, config, decoders)
        found = predictor.predict(images)
        digits = found.digits.tolist()
        readable = found.probabilities.astype(np.float64).round(6).tolist()  # all digits: /v2
        predictions = [
            Prediction(digit, probabilities[digit], probabilities)
            for digit, probabilities in zip(digits, readable, strict=True)
        ]
        observe.count_predictions(asked, digits, [prediction.confidence for prediction in predictions])
        if with_pixels:
            for prediction, pixels in zip(predictions, images.tolist(), strict=True):
                prediction.pixels = pixels
        return Response(encoder.encode(Answer(predictions, model)), content_type="application/json")

    return routes


def _flag(asked: Request, name: str) -> bool:
    value = asked.args.get(name, "false")
    if value not in ("true", "false"):
        raise BadRequest(f"{name}: expected true or false, found {value!r}")
    return value == "true"
