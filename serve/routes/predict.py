"""POST /predict: decode the images, predict them, encode the answer."""

import msgspec
import numpy as np
from flask import Blueprint, Request, Response
from flask import request as proxy

from serve.config import Config
from serve.pictures.decoder_pool import DecoderPool
from serve.pictures.preprocess import ImageError
from serve.predictor import Predictor
from serve.release import Release
from serve.routes.images import query_parameter, read_images, unprocessable
from serve.server import metrics
from serve.server.access_log import IMAGES_PREDICTED


class Model(msgspec.Struct):
    """The model that predicted."""

    name: str
    version: str


class Prediction(msgspec.Struct, kw_only=True):
    """The prediction for one image."""

    digit: int  # the likeliest
    confidence: float  # its probability
    doubtful: bool  # whether the image is probably not a digit
    probabilities: list[float]  # [10]
    pixels: list[list[int]] | msgspec.UnsetType = msgspec.UNSET  # [28, 28], what the model was given


class PredictResponse(msgspec.Struct):
    """The response, its predictions in the order of the images."""

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
        request: Request = proxy._get_current_object()  # type: ignore[attr-defined]  # each use of the proxy looks it up
        with_pixels = query_parameter(request, "pixels", ("false", "true"), "false") == "true"
        refuses_doubtful = "refuse" in request.args and query_parameter(request, "refuse", ("doubtful",), "")
        images = read_images(request, config, decoders)
        found = predictor.predict(images)
        digits = found.digits.tolist()
        readable = found.probabilities.astype(np.float64).round(6).tolist()  # /v2 gives every decimal
        doubtful = found.doubtful.tolist()
        predictions = [
            Prediction(digit=digit, confidence=probabilities[digit], doubtful=doubt, probabilities=probabilities)
            for digit, doubt, probabilities in zip(digits, doubtful, readable, strict=True)
        ]
        confidences = [prediction.confidence for prediction in predictions]
        request.environ[IMAGES_PREDICTED] = len(digits)
        metrics.count_predictions(digits, confidences, doubtful.count(True))
        if refuses_doubtful and True in doubtful:
            error = ImageError("expected a digit, found a doubtful image")
            raise unprocessable(doubtful.index(True), len(images), error)
        if with_pixels:
            for prediction, pixels in zip(predictions, images.tolist(), strict=True):
                prediction.pixels = pixels
        return Response(encoder.encode(PredictResponse(predictions, model)), content_type="application/json")

    return routes
