"""All undocumented names of libraries that the service uses still exist.

pyproject.toml bounds the versions of these libraries. If a test here fails with a new version, look for the new name.
"""

import inspect

import gevent
import pytest
from gunicorn import util
from gunicorn.arbiter import Arbiter
from gunicorn.http import body, message, unreader
from gunicorn.workers import base_async, ggevent

ARBITER = ("handle_hup", "spawn_worker", "manage_workers", "num_workers", "LISTENERS", "WORKERS", "SIGNALS")


@pytest.mark.parametrize("name", ARBITER)
def test_the_master(name):
    assert hasattr(Arbiter, name)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (base_async.AsyncWorker, "self.handle_request(listener_name, req, client, addr)"),
        (base_async.AsyncWorker, "resp.should_close()"),
        (ggevent.GeventWorker, "super().handle(listener, client, addr)"),
        (message.Message, "self._expected_100_continue = "),
        (message.Message, "def should_close(self)"),
        (message.Message, "self.unreader = unreader"),
        (unreader.Unreader, "self.buf = io.BytesIO()"),
        (body.Body, "self.reader = reader"),
        (body.Body, "self.failed = "),
        (body.LengthReader, "self.length = length"),
        (body.ChunkedReader, "self.parser = "),
        (util, "def write_error(sock, status_int, reason, mesg)"),
        (util, "def write_nonblock(sock, data"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_worker(module, text):
    assert text in inspect.getsource(module)


def test_the_event_loop():
    assert gevent.get_hub().loop.iteration >= 0
