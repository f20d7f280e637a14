"""The same service in BentoML: `bentoml serve bentoml_app:Digits`.

BentoML counts and logs requests by default. With DUTIES the middleware does both instead, as for the others.
"""

import os

import bentoml
import numpy as np
import onnxruntime as ort
from pydantic import BaseModel

DUTIES = "DUTIES" in os.environ


class Prediction(BaseModel):
    """The prediction for one image."""

    digit: int
    confidence: float
    probabilities: list[float]


@bentoml.service(
    workers=int(os.environ.get("WORKERS", "1")),
    traffic={"timeout": 30},
    **({"metrics": {"enabled": False}, "logging": {"access": {"enabled": False}}} if DUTIES else {}),
)
class Digits:
    """One ONNX Runtime session per worker."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["GRAPH"], options)

    @bentoml.api
    def predict(self, image: list[list[int]]) -> Prediction:
        """Predict the digit of an image in JSON."""
        probabilities, digits = self.session.run(
            ["probabilities", "digit"], {"image": np.array(image, dtype=np.uint8)[None]}
        )
        return Prediction(
            digit=int(digits[0]), confidence=float(probabilities.max()), probabilities=probabilities[0].tolist()
        )


if DUTIES:
    from duties import Duties

    Digits.add_asgi_middleware(Duties)
