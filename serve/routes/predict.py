"""POST /predict: decode the images, classify them, encode the response."""

import msgspec
import numpy as np
from flask import Blueprint, Response, request

from serve.config import Config
from serve.pictures.decoder_pool import DecoderPool
from serve.pictures.preprocess import ImageError
from serve.predictor import Predictor
from serve.release import Release
from serve.routes.images import query_parameter, read_images, unprocessable
from serve.server import metrics
from serve.server.access_log import IMAGES_PREDICTED


class Prediction(msgspec.Struct):
    """The prediction for one image."""

    digit: int  # the most probable digit
    confidence: float  # the probability of `digit`
    doubtful: bool  # whether the image is probably not a digit
    probabilities: list[float]  # [10]
    pixels: list[list[int]] | msgspec.UnsetType = msgspec.UNSET  # [28, 28], the model's input; only on request


def blueprint(config: Config, release: Release, predictor: Predictor) -> Blueprint:
    """Return the route POST /predict."""
    routes = Blueprint("predict", __name__)
    decoders = DecoderPool(config.max_pixels)
    model = {"name": release.manifest.model, "version": release.version}

    @routes.post("/predict")
    def predict() -> Response:
        with_pixels = query_parameter(request, "pixels", ("false", "true"), "false") == "true"
        refuses_doubtful = "refuse" in request.args and query_parameter(request, "refuse", ("doubtful",), "")
        images = read_images(request, config, decoders)
        found = predictor.predict(images)
        readable = found.probabilities.astype(np.float64).round(6).tolist()  # here to 6 decimals; /v2 does not round
        digits, doubtful = found.digits.tolist(), found.doubtful.tolist()
        predictions = [
            Prediction(digit, probabilities[digit], doubt, probabilities)
            for digit, doubt, probabilities in zip(digits, doubtful, readable, strict=True)
        ]
        request.environ[IMAGES_PREDICTED] = len(images)
        confidences = [prediction.confidence for prediction in predictions]
        metrics.count_predictions(digits, confidences, doubtful.count(True))
        if refuses_doubtful and True in doubtful:
            error = ImageError("expected a digit, found a doubtful image")
            raise unprocessable(doubtful.index(True), len(images), error)
        if with_pixels:
            for prediction, pixels in zip(predictions, images.tolist(), strict=True):
                prediction.pixels = pixels
        body = msgspec.json.encode({"predictions": predictions, "model": model})
        return Response(body, content_type="application/json")

    return routes
