"""Load on a service or a container: clients that send one request after another."""

import http.client
import json
import operator
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from tests.polling import PATIENCE
from tests.serve.conftest import RAW


class Load:
    """Eight clients with kept-alive connections, by default."""

    def __init__(self, service, images, clients=8):
        self.service, self.body = service, images[:1].tobytes()
        self.answers: Counter[tuple[int, str]] = Counter()  # by status and model version
        self.answered = [0] * clients  # by client
        self.failures: list[tuple[int, str, bool]] = []  # client, exception, whether the connection was already used
        self.stopping = threading.Event()
        self.pool = ThreadPoolExecutor(clients)

    def __enter__(self):
        self.running = [self.pool.submit(self._request, client) for client in range(len(self.answered))]
        return self

    def __exit__(self, *_):
        self.stopping.set()
        for client in self.running:
            client.result(PATIENCE)

    def wait_for_responses(self, count=25):
        """Wait until every client has received `count` more responses."""
        goals = [answered + count for answered in self.answered]
        self.service.wait(lambda: all(map(operator.ge, self.answered, goals)))

    def _request(self, client):
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=PATIENCE)
        while not self.stopping.is_set():
            used = connection.sock is not None
            try:
                connection.request("POST", "/predict", self.body, RAW)
                answer = connection.getresponse()
                self.answers[answer.status, json.loads(answer.read())["model"]["version"]] += 1
                self.answered[client] += 1
            except (OSError, http.client.HTTPException) as error:
                self.failures.append((client, type(error).__name__, used))
                connection.close()  # the next request opens a new one
                time.sleep(0.02)
        connection.close()
