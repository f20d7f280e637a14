"""Run the exported model in ONNX Runtime. This module does not depend on HTTP.

`python -m serve.predictor < digits.onnx` checks that the service can run a graph. The exit status is 0, or 1 after an
error; one line on standard error then states the reason.
"""

import sys
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from model.contract import IMAGE, OUTPUTS, ContractError, check_graph
from serve.release import ModelError
from serve.server.event_loop import yield_to_event_loop

NAMES = [output.name for output in OUTPUTS]  # without this list, ONNX Runtime would look up the names in each run
BLANK = np.zeros((1, *IMAGE.shape), IMAGE.dtype)
# Images per run. More images do not fit in the CPU's cache. A run takes about 4 ms. Between two runs, the event loop
# serves other requests.
CHUNK = 100


class Predictions(NamedTuple):
    """The model's outputs for N images, in the order of model.contract, and whether each image is doubtful."""

    probabilities: NDArray[np.float32]  # [N, 10]
    digits: NDArray[np.int64]  # [N]
    doubts: NDArray[np.float32]  # [N]; the larger, the less the image looks like a digit
    doubtful: NDArray[np.bool_]  # [N], whether the doubt is above the threshold


class Predictor:
    """An ONNX Runtime session. Create it after a fork: a forked process would lack the threads of ONNX Runtime."""

    def __init__(self, graph: bytes, threshold: float) -> None:
        """Load `graph`, which then runs on one thread. An image is doubtful if its doubt is above `threshold`.

        Raises ModelError if the graph does not have the inputs and outputs of model.contract, or does not run.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # a small network runs slower on more threads
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises many types of exceptions
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
        """Run the model on a blank image. Raises ONNX Runtime's exception if the run fails."""
        self._run(BLANK)

    def _run(self, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = self._session.run(NAMES, {IMAGE.name: images})
        return outputs


if __name__ == "__main__":
    try:
        Predictor(sys.stdin.buffer.read(), threshold=0)
    except ModelError as error:
        sys.exit(str(error))
