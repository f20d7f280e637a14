"""Hostile requests: the worker survives, its memory stays bounded, and other clients are served meanwhile."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import gevent
import pytest
import requests

from serve.server.event_loop import yield_to_event_loop
from tests.polling import PATIENCE
from tests.serve.hostile import CASES, INFER, JSON, RAW, Bystander, attack, head, request

pytestmark = pytest.mark.xdist_group("hostile")

LATE = 5  # seconds: limit of the worker's CPU time from a request of another client to its response
MEMORY, MEMORY_OF_16 = 512, 1024  # MiB: limits for the worker with its decoders, at 1 and at 16 hostile requests


@pytest.fixture(scope="module")
def victim(start_for_module):
    """Return a service with one worker and a short REQUEST_TIMEOUT."""
    service = start_for_module(WEB_CONCURRENCY=1, REQUEST_TIMEOUT=3)
    yield service
    assert [line for line in service.lines() if line["level"] in ("error", "critical")] == []


def check(bystander):
    assert set(bystander.statuses) == {200}
    assert bystander.blocked < LATE
    assert bystander.memory < MEMORY


# Each of these cases sends data until the service closes the connection, LINGER seconds after the response.
ENDLESS = [name for name in CASES if name.startswith("endless")]


@pytest.mark.slow
def test_endless_requests_at_once_get_responses_and_do_not_harm_others(victim):
    with Bystander(victim) as bystander, ThreadPoolExecutor(len(ENDLESS)) as pool:
        statuses = dict(zip(ENDLESS, pool.map(lambda name: attack(victim, CASES[name]()), ENDLESS), strict=True))
    check(bystander)
    # 400 at gunicorn's limit for trailers or a chunk extension; 408 if a busy machine reaches the timeout first.
    malformed = {400, 408}
    refused = {"/nowhere": {404}, "trailers": malformed, "extension": malformed}  # key: last word of the case's name
    for name, status in statuses.items():
        assert status in refused.get(name.split()[-1], {408, 413}), name


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in ENDLESS])
def test_a_hostile_request_does_not_harm_others(victim, name):
    with Bystander(victim) as bystander:
        status = attack(victim, CASES[name]())
    check(bystander)
    assert status in {400, 404, 405, 408, 413, 415, 422}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WebP", "/predict", "/v2", "form"])
def test_sixteen_hostile_requests_at_once_do_not_harm_others(victim, kind):
    cases = [case for name, case in CASES.items() if name.startswith(kind)]
    with Bystander(victim) as bystander, ThreadPoolExecutor(16) as pool:
        bodies = [list(case()) for case in cases]
        statuses = list(pool.map(lambda i: attack(victim, iter(bodies[i % len(bodies)])), range(16)))
    assert bystander.memory < MEMORY_OF_16
    assert set(statuses) <= {400, 408, 413, 422}
    assert set(bystander.statuses) <= {200, 408}  # 408: a picture waited too long for a decoder


def test_pipelined_requests_wait_for_the_requests_of_others(victim):
    """280 connections pipeline 100 requests each; ten new clients are served before all 28,000 are answered."""
    health = "digits_request_duration_seconds_count", (("route", "/healthz"),)
    with ExitStack() as stack:
        for _ in range(280):
            stack.enter_context(victim.connect()).sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        for _ in range(10):
            assert requests.get(f"{victim.url}/readyz", timeout=PATIENCE).ok
        assert victim.metrics()[health] < 28_000


def test_slow_clients_time_out(victim):
    """An unfinished body gets 408 after REQUEST_TIMEOUT; an unfinished head gets no response."""
    bodies = [head(path, RAW, "Content-Length: 784") + b"slow" for path in ("/predict", INFER)]
    with ExitStack() as stack:
        slow = [stack.enter_context(victim.connect()) for _ in range(4)]
        for connection, sent in zip(slow, (*bodies, b"GET /healthz HTTP/1.1\r\nHost:", b""), strict=True):
            connection.sendall(sent)
        predict, protocol, headless, idle = (connection.makefile("rb").read() for connection in slow)
    for answer in (predict, protocol):
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"expected the whole request within 3 seconds" in answer
    assert b"application/problem+json" in predict
    assert protocol.rpartition(b"\r\n\r\n")[2].startswith(b'{"error":')
    assert headless == idle == b""


def test_a_connection_whose_body_was_not_read_is_closed(victim):
    for path, status in (("/predict", "413"), ("/nowhere", "404"), ("/healthz", "405")):
        with victim.connect() as connection:
            connection.sendall(head(path, "text/plain", "Content-Length: 999999999999") + bytes(100_000))
            lines = connection.makefile("rb").read().decode().split("\r\n")
        assert lines[0].split()[1] == status
        assert "Connection: close" in lines
        assert lines[-1].startswith('{"type":"about:blank"')


def test_100_continue_is_sent_for_a_body_within_the_limit_only(victim, images):
    """A body above the limit is refused before the client sends it (RFC 9110, section 10.1.1)."""
    for size, answer in ((99_999_999, b"HTTP/1.1 413 "), (784, b"HTTP/1.1 100 Continue\r\n\r\n")):
        with victim.connect() as connection:
            connection.sendall(head("/predict", RAW, f"Content-Length: {size}", "Expect: 100-continue"))
            assert connection.recv(100).startswith(answer)
            if size == 784:
                connection.sendall(images[0].tobytes())
                assert connection.recv(100).startswith(b"HTTP/1.1 200 ")


CHUNKED = [head(path, JSON, "Transfer-Encoding: chunked") for path in ("/predict", INFER)]
EARLY = "expected the whole body, found the end of the connection"


@pytest.mark.parametrize(
    ("sent", "status", "part"),
    [
        (b"nonsense\r\n\r\n", 400, '"status":400'),
        (b"GET /" + b"a" * 5_000 + b" HTTP/1.1\r\n\r\n", 414, '"status":414'),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n", 431, '"status":431'),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: foo\r\n\r\n", 501, '"status":501'),
        (CHUNKED[0] + b"zz\r\nabc\r\n0\r\n\r\n", 400, "Content-Type: application/problem+json"),
        (CHUNKED[0] + b"3\r\nabcdef\r\n0\r\n\r\n", 400, "Content-Type: application/problem+json"),
        (CHUNKED[1] + b"zz\r\nabc\r\n0\r\n\r\n", 400, '{"error":'),
        (CHUNKED[0] + b"5\r\nxx", 400, EARLY),
        (head("/predict?preprocess=none", RAW, "Content-Length: 1568") + b"x" * 784, 400, EARLY),
    ],
    ids=range(9),
)
def test_a_malformed_request_is_answered_and_the_connection_is_closed(victim, sent, status, part):
    answer = victim.exchange(sent).decode()
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert "X-Request-ID: " in answer
    assert "\r\nConnection: close\r\n" in answer or part == EARLY  # EARLY: the client has closed the connection
    assert part in answer


@pytest.mark.slow
def test_a_client_that_does_not_read_is_disconnected_with_one_log_line(victim, images):
    before = len(victim.lines())
    unsent = memoryview(20 * request("/predict?pixels=true", RAW, images[:1_000].tobytes()))
    with victim.connect() as connection:
        connection.settimeout(1)

        def is_disconnected():
            nonlocal unsent
            with suppress(OSError):
                unsent = unsent[connection.send(unsent) :]
            return [line for line in victim.lines() if "did not read" in line["message"]]

        victim.wait(is_disconnected)
    assert [line for line in victim.lines()[before:] if line["level"] == "error"] == []


def test_a_greenlet_that_is_killed_while_it_waits_does_not_block_another():
    first, second = gevent.spawn(yield_to_event_loop), gevent.spawn(yield_to_event_loop)
    gevent.sleep(0)  # now both greenlets wait, the second for the first
    first.kill(block=False)
    second.get(timeout=PATIENCE)
