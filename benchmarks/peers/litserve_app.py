"""The same service in LitServe: `python litserve_app.py`."""

import os

import litserve as ls


class Digits(ls.LitAPI):
    """The steps of LitServe: decode, predict; it encodes the answer itself."""

    def setup(self, device):
        """Load the model in the worker process."""
        from predictor import predict_image

        self.predict_image = predict_image

    def decode_request(self, request):
        """Return the rows of the image."""
        return request["image"]

    def predict(self, rows):
        """Return the prediction."""
        return self.predict_image(rows)


if __name__ == "__main__":
    middlewares = []
    if "DUTIES" in os.environ:
        from duties import Duties

        middlewares = [Duties]
    workers = int(os.environ["WORKERS"])
    server = ls.LitServer(Digits(), accelerator="cpu", workers_per_device=workers, middlewares=middlewares)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
