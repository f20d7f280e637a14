"""POST /predict: decode the images, predict them, encode the answer."""

import msgspec
import numpy as np
from flask import Blueprint, Response, request
from werkzeug.exceptions import BadRequest

from serve import observe
from serve.bodies import read_images, unprocessable
from serve.config import Config
from serve.decoder import DecoderPool
from serve.predictor import Predictor
from serve.preprocess import ImageError
from serve.release import Release


class Model(msgspec.Struct):
    """The model that predicted."""

    name: str
    version: str


class Prediction(msgspec.Struct, kw_only=True):
    """The prediction for one image."""

    digit: int
    confidence: float
    doubtful: bool | msgspec.UnsetType = msgspec.UNSET
    probabilities: list[float]
    pixels: list[list[int]] | msgspec.UnsetType = msgspec.UNSET


class Answer(msgspec.Struct):
    """The response body of /predict."""

    predictions: list[Prediction]
    model: Model


def blueprint(config: Config, release: Release, predictor: Predictor) -> Blueprint:
    """Return the route POST /predict."""
    routes = Blueprint("predict", __name__)
    decoders = DecoderPool(config.max_pixels)
    model = Model(release.manifest.model, release.version)
    encoder = msgspec.json.Encoder()

    @routes.post("/predict")
    def predict() -> Response:
        with_pixels = _flag("pixels")
        refuses_doubtful = _refuses_doubtful()
        images = read_images(request, config, decoders)
        found = predictor.predict(images)
        digits = found.digits.tolist()
        readable = found.probabilities.astype(np.float64).round(6).tolist()  # /v2 gives every decimal
        doubtful = [msgspec.UNSET] * len(digits) if found.doubtful is None else found.doubtful.tolist()
        predictions = [
            Prediction(digit=digit, confidence=probabilities[digit], doubtful=doubt, probabilities=probabilities)
            for digit, doubt, probabilities in zip(digits, doubtful, readable, strict=True)
        ]
        confidences = [prediction.confidence for prediction in predictions]
        observe.count_predictions(request, digits, confidences, doubtful.count(True))
        if refuses_doubtful and True in doubtful:
            error = ImageError("expected a digit, found a doubtful image")
            raise unprocessable(doubtful.index(True), len(images), error)
        if with_pixels:
            for prediction, pixels in zip(predictions, images.tolist(), strict=True):
                prediction.pixels = pixels
        return Response(encoder.encode(Answer(predictions, model)), content_type="application/json")

    def _refuses_doubtful() -> bool:
        value = request.args.get("refuse")
        if value not in (None, "doubtful"):
            raise BadRequest(f"refuse: expected doubtful, found {value!r}")
        if value and predictor.threshold is None:
            found = f"{model.name}, version {model.version}, which gives none"
            raise BadRequest(f"refuse=doubtful: expected a model that gives a doubt, found {found}")
        return value is not None

    return routes


def _flag(name: str) -> bool:
    value = request.args.get(name, "false")
    if value not in ("true", "false"):
        raise BadRequest(f"{name}: expected true or false, found {value!r}")
    return value == "true"
