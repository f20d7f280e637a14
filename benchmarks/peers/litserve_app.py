"""The same service in LitServe: `python litserve_app.py`."""

import os

import litserve as ls
import numpy as np
import onnxruntime as ort


class Digits(ls.LitAPI):
    """decode → predict → encode."""

    def setup(self, device):
        """Load the model."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = ort.InferenceSession(os.environ["GRAPH"], options)

    def decode_request(self, request):
        """Return the image, uint8 [1, 28, 28]."""
        return np.array(request["image"], dtype=np.uint8)[None]

    def predict(self, image):
        """Return probabilities and digits."""
        return self.session.run(["probabilities", "digit"], {"image": image})

    def encode_response(self, output):
        """Return the response."""
        probabilities, digits = output
        return {
            "digit": int(digits[0]),
            "confidence": float(probabilities.max()),
            "probabilities": probabilities[0].tolist(),
        }


if __name__ == "__main__":
    middlewares = []
    if "DUTIES" in os.environ:
        from duties import Duties

        middlewares = [Duties]
    workers = int(os.environ["WORKERS"])
    server = ls.LitServer(Digits(), accelerator="cpu", workers_per_device=workers, middlewares=middlewares)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
