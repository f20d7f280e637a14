"""The same by BentoML: `bentoml serve bentoml_app:Digits`."""

import os

import bentoml
import numpy as np
import onnxruntime as ort
from pydantic import BaseModel


class Prediction(BaseModel):
    """What the model says of an image."""

    digit: int
    confidence: float
    probabilities: list[float]


@bentoml.service(workers=int(os.environ.get("WORKERS", "1")), traffic={"timeout": 30})
class Digits:
    """One session a worker."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["GRAPH"], options)

    @bentoml.api
    def predict(self, image: list[list[int]]) -> Prediction:
        """Predict the digit of an image in JSON."""
        probabilities, digits = self.session.run(None, {"image": np.array(image, dtype=np.uint8)[None]})
        return Prediction(
            digit=int(digits[0]), confidence=float(probabilities.max()), probabilities=probabilities[0].tolist()
        )
