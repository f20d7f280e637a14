"""The same service in FastAPI: `uvicorn --workers 2 --loop uvloop --http httptools fastapi_app:app`."""

import io
import os
from typing import Annotated

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, Request
from PIL import Image
from pydantic import BaseModel, Field

app = FastAPI()
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["GRAPH"], options)


class Body(BaseModel):
    """One image, 28 rows of 28 numbers."""

    image: list[list[Annotated[int, Field(ge=0, le=255)]]]


class Prediction(BaseModel):
    """The prediction for one image."""

    digit: int
    confidence: float
    probabilities: list[float]


def answer(image):
    """Predict one image, uint8 [28, 28]."""
    probabilities, digits = session.run(["probabilities", "digit"], {"image": image[None]})
    return Prediction(
        digit=int(digits[0]), confidence=float(probabilities.max()), probabilities=probabilities[0].tolist()
    )


@app.post("/predict")
async def predict(body: Body) -> Prediction:
    """Predict the digit of an image in JSON."""
    return answer(np.array(body.image, dtype=np.uint8))


@app.post("/picture")
async def picture(request: Request) -> Prediction:
    """Predict the digit of a picture."""
    return answer(np.array(Image.open(io.BytesIO(await request.body())).convert("L")))


@app.get("/healthz")
async def health() -> dict[str, str]:
    """Return a constant."""
    return {"status": "ok"}


if "DUTIES" in os.environ:
    from duties import Duties

    app.add_middleware(Duties)
