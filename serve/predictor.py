"""Run the exported model in ONNX Runtime. Independent of HTTP.

`python -m serve.predictor < digits.onnx` checks that a graph can be served: exit status 0, or 1 and one
line on standard error.
"""

import sys
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from model.contract import IMAGE, OUTPUTS, ContractError, check_graph
from serve.release import ModelError
from serve.server.event_loop import yield_to_event_loop

NAMES = [output.name for output in OUTPUTS]  # otherwise ONNX Runtime looks up the names at each run
BLANK = np.zeros((1, *IMAGE.shape), IMAGE.dtype)
CHUNK = 100  # images per run: more do not fit the CPU's cache; with 100, the event loop runs every 2 ms


class Predictions(NamedTuple):
    """The model's outputs for N images, in the order of model.contract, and which images are doubtful."""

    probabilities: NDArray[np.float32]  # [N, 10]
    digits: NDArray[np.int64]  # [N]
    doubts: NDArray[np.float32]  # [N], how unlike a digit
    doubtful: NDArray[np.bool_]  # [N], whether the doubt is above the threshold


class Predictor:
    """An ONNX Runtime session. Create it after a fork, never before."""

    def __init__(self, graph: bytes, threshold: float) -> None:
        """Load `graph` to run on one thread; an image with a doubt above `threshold` is doubtful.

        Raises ModelError if the graph does not have the inputs and outputs of model.contract, or does not run.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # more are slower for such a small network
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has many exception types
            raise ModelError(f"expected an ONNX graph, found: {' '.join(str(error).split())}") from error
        try:
            check_graph(self._session)
        except ContractError as error:
            raise ModelError(str(error)) from error
        self._threshold = threshold
        try:
            self.probe()
        except Exception as error:
            raise ModelError(f"expected a graph that runs, found: {' '.join(str(error).split())}") from error

    def predict(self, images: NDArray[np.uint8]) -> Predictions:
        """Return the model's outputs for `images`, uint8 [N, 28, 28], N ≥ 1, white ink on black."""
        runs = []
        for start in range(0, len(images), CHUNK):
            if start:
                yield_to_event_loop()
            runs.append(self._run(images[start : start + CHUNK]))
        outputs = runs[0] if len(runs) == 1 else [np.concatenate(parts) for parts in zip(*runs, strict=True)]
        probabilities, digits, doubts = outputs
        return Predictions(probabilities, digits, doubts, doubts > self._threshold)

    def probe(self) -> None:
        """Predict a blank image; raises the runtime's exception if the model fails."""
        self._run(BLANK)

    def _run(self, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = self._session.run(NAMES, {IMAGE.name: images})
        return outputs


if __name__ == "__main__":
    try:
        Predictor(sys.stdin.buffer.read(), threshold=0)
    except ModelError as error:
        sys.exit(str(error))
