"""The same service in FastAPI: `uvicorn --workers 2 --loop uvloop --http httptools fastapi_app:app`."""

import os
from typing import Annotated

from fastapi import FastAPI
from predictor import predict_image
from pydantic import BaseModel, Field

app = FastAPI()


class Body(BaseModel):
    """One image, 28 rows of 28 numbers."""

    image: list[list[Annotated[int, Field(ge=0, le=255)]]]


class Prediction(BaseModel):
    """The prediction for one image."""

    digit: int
    confidence: float
    probabilities: list[float]


@app.post("/predict")
async def predict(body: Body) -> Prediction:
    """Predict the digit of an image in JSON."""
    return Prediction(**predict_image(body.image))


if "DUTIES" in os.environ:
    from duties import Duties

    app.add_middleware(Duties)
