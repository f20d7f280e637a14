"""POST /predict: decode the images, predict them, encode the answer."""

from typing import Annotated

import msgspec
import numpy as np
from flask import Blueprint, Request, Response
from flask import request as proxy
from msgspec import Meta

from model.contract import CLASSES, SIDE
from serve.config import Config
from serve.pictures.decoder_pool import DecoderPool
from serve.pictures.preprocess import ImageError
from serve.predictor import Predictor
from serve.release import Release, Version
from serve.routes.images import query_parameter, read_images, unprocessable
from serve.server import metrics
from serve.server.access_log import IMAGES_PREDICTED

Probability = Annotated[float, Meta(ge=0, le=1)]
Row = Annotated[list[Annotated[int, Meta(ge=0, le=255)]], Meta(min_length=SIDE, max_length=SIDE)]
Rows = Annotated[list[Row], Meta(min_length=SIDE, max_length=SIDE)]
DOUBTFUL = (
    "Whether the image is probably not a digit: its doubt is above the model's threshold. This is also true for 1 % of "
    "MNIST's digits."
)


class Model(msgspec.Struct, forbid_unknown_fields=True):
    """The model that predicted."""

    name: str
    version: Version


class Prediction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The prediction for one image."""

    digit: Annotated[int, Meta(ge=0, le=CLASSES - 1, description="The likeliest digit.")]
    confidence: Annotated[Probability, Meta(description="Its probability.")]
    doubtful: Annotated[bool, Meta(description=DOUBTFUL)]
    probabilities: Annotated[
        list[Probability],
        Meta(min_length=CLASSES, max_length=CLASSES, description="The probability of each digit, 0 to 9."),
    ]
    pixels: (
        Annotated[Rows, Meta(description="With pixels=true: what the model was given, 28 rows of 28.")]
        | msgspec.UnsetType
    ) = msgspec.UNSET


class PredictResponse(msgspec.Struct, forbid_unknown_fields=True):
    """The response body of /predict, its predictions in the order of the images."""

    predictions: Annotated[list[Prediction], Meta(min_length=1)]
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
