"""The model in ONNX Runtime. Knows no HTTP.

`python -m serve.predictor < digits.onnx` says whether a graph can be served: exit status 0, or 1 and one line.
"""

import sys
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from model.contract import IMAGE, ContractError, check_graph
from serve.event_loop import chunks
from serve.release import ModelError

BLANK = np.zeros((1, *IMAGE.shape), IMAGE.dtype)
CHUNK = 100  # images at a time: faster than thousands (the cache), and 2 ms until the next request has its turn


@dataclass(frozen=True)
class Predictions:
    """What the model says of N images."""

    probabilities: NDArray[np.float32]  # [N, 10]
    digits: NDArray[np.int64]  # [N]


class Predictor:
    """One ONNX Runtime session. Make it after a fork, never before."""

    def __init__(self, graph: bytes, threads: int = 1) -> None:
        """Load `graph` to run on `threads` threads. Raises ModelError where it is not the contract's graph."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A thread that spins for work takes the core from the next worker.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime has many of its own
            raise ModelError(f"expected an ONNX graph, found: {' '.join(str(error).split())}") from error
        try:
            check_graph(self._session)
        except ContractError as error:
            raise ModelError(str(error)) from error
        try:
            self.probe()
        except Exception as error:
            raise ModelError(f"expected a graph that runs, found: {' '.join(str(error).split())}") from error

    def predict(self, images: NDArray[np.uint8]) -> Predictions:
        """Return what the model says of `images`, uint8 [N, 28, 28], N ≥ 1, white ink on black."""
        if len(images) <= CHUNK:
            return Predictions(*self._run(images))
        probabilities, digits = zip(*(self._run(chunk) for _, chunk in chunks(images, CHUNK)), strict=True)
        return Predictions(np.concatenate(probabilities), np.concatenate(digits))

    def probe(self) -> None:
        """Predict a blank image; raises what the runtime raises where the model does not answer."""
        self._run(BLANK)

    def _run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        probabilities, digits = self._session.run(["probabilities", "digit"], {IMAGE.name: images})
        return probabilities, digits


if __name__ == "__main__":
    try:
        Predictor(sys.stdin.buffer.read())
    except ModelError as error:
        sys.exit(str(error))
