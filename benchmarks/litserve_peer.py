"""The service in LitServe: `python -m benchmarks.litserve_peer`. LitServe's workers import _Digits from here."""

import os

import litserve

from benchmarks.peers import MIDDLEWARE, predict_image, session


class _Digits(litserve.LitAPI):
    def setup(self, device):
        session()

    def decode_request(self, request):
        return request["image"]

    def predict(self, rows):
        return predict_image(rows)


if __name__ == "__main__":
    workers = int(os.environ["WORKERS"])
    server = litserve.LitServer(_Digits(), accelerator="cpu", workers_per_device=workers, middlewares=MIDDLEWARE)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
