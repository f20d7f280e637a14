"""The names of libraries that the service uses and their documentation does not promise, all of them.

pyproject.toml bounds the versions of these libraries. If a test here fails with a new one, look for the new name.
"""

import inspect

import gevent
import pytest
from gunicorn import arbiter, util
from gunicorn.http import body, message, unreader
from gunicorn.workers import base_async, ggevent

NAMES = {
    arbiter: ["def handle_hup(", "def spawn_worker(", "def manage_workers(", "num_workers", "LISTENERS", "WORKERS"],
    base_async: ["self.handle_request(listener_name, req, client, addr)", "resp.should_close()"],
    ggevent: ["super().handle(listener, client, addr)"],
    message: ["self._expected_100_continue = ", "def should_close(self)", "self.unreader = unreader"],
    unreader: ["self.buf = io.BytesIO()"],
    body: ["self.reader = reader", "self.failed = ", "self.length = length", "self.parser = "],
    util: ["def write_error(sock, status_int, reason, mesg)", "def write_nonblock(sock, data"],
}


@pytest.mark.parametrize("module", NAMES, ids=lambda module: module.__name__)
def test_gunicorn(module):
    assert [name for name in NAMES[module] if name not in inspect.getsource(module)] == []


def test_gevent():
    assert gevent.get_hub().loop.iteration >= 0
