"""Operation of a real gunicorn: load, slow clients, shutdown, model reload, killed workers, memory, log."""

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import requests

from tests.polling import PATIENCE, answers
from tests.serve.conftest import IN_FLIGHT, RAW, Load, Service, inference
from tests.serve.hostile import INFER, encode, head, request
from tests.serve.releases import make_graph, put_graph
from train.paths import RELEASE


@pytest.fixture
def model_dir(tmp_path):
    return Path(shutil.copytree(RELEASE, tmp_path / "model\udcff"))  # the log must accept a name that is not UTF-8


def test_accuracy_over_http_equals_the_manifest_s(service, images, labels):
    found = []
    for start in range(0, 10_000, 1_000):
        answer = service.predict(images[start : start + 1_000]).json()
        found += [prediction["digit"] for prediction in answer["predictions"]]
    manifest = json.loads((RELEASE / "manifest.json").read_text())
    assert int((np.array(found) == labels).sum()) == manifest["test_correct"]


def test_workers_have_no_extra_threads(service):
    """A worker has its main thread and a thread of gevent, but no thread pool of ONNX Runtime or OpenBLAS."""
    assert len(service.workers()) == len(os.sched_getaffinity(0))
    for worker in service.workers():
        assert len(os.listdir(f"/proc/{worker}/task")) <= 2


def test_a_chunked_body_is_read_and_limited(service, images):
    for path, body in (("/predict", images[:3].tobytes()), (INFER, json.dumps(inference(images[:3])).encode())):
        with requests.Session() as session:
            for _ in range(2):
                answer = session.post(service.url + path, iter((body[:784], body[784:])), headers=RAW)
                assert answer.status_code == 200, answer.text
                assert answer.headers["Connection"] == "keep-alive"
            assert session.post(service.url + path, (bytes(2**20) for _ in range(17)), headers=RAW).status_code == 413


@pytest.fixture(scope="module")
def patient(start_for_module):
    """Return a service with one worker that waits long for large batches, slow clients and idle connections."""
    return start_for_module(WEB_CONCURRENCY=1, MAX_BATCH=5_000, REQUEST_TIMEOUT=5 * PATIENCE, KEEP_ALIVE=600)


@pytest.mark.slow
def test_a_large_batch_does_not_starve_new_connections(patient, images):
    answered = 0
    with ThreadPoolExecutor() as pool:
        url = f"{patient.url}/predict?preprocess=mnist"  # takes seconds; meanwhile, other requests must be served
        batch = pool.submit(requests.post, url, images[:5_000].tobytes(), headers=RAW)
        while not batch.done():
            assert requests.get(f"{patient.url}/healthz").ok
            answered += 1
    assert batch.result().ok
    assert answered >= 30  # the batch yields to the event loop hundreds of times


HEAD = head("/predict", "application/octet-stream", "Content-Length: 784")


def test_slow_clients_do_not_block_others(patient, images):
    """A worker accepts 1,000 connections: 900 requests whose body never ends leave room for other clients."""
    with ExitStack() as stack:
        for _ in range(900):
            stack.enter_context(patient.connect()).sendall(HEAD + b"slow")
        for _ in range(10):
            assert patient.predict(images[:1]).ok
        assert patient.metrics()[IN_FLIGHT] == 901


@pytest.mark.slow
def test_an_idle_connection_is_kept_for_keep_alive(patient):
    connection = http.client.HTTPConnection("127.0.0.1", patient.port, timeout=PATIENCE)
    connection.request("GET", "/healthz")
    assert connection.getresponse().read()
    connection.sock.settimeout(7)  # by default, an idle connection is closed after 5 seconds
    with pytest.raises(TimeoutError):
        connection.sock.recv(1)
    connection.close()


@pytest.mark.slow
@pytest.mark.xdist_group("load")
def test_a_killed_worker_loses_only_its_requests_in_flight(start, images):
    service = start(WEB_CONCURRENCY=2)
    with Load(service.port, images) as load:
        for _ in range(3):
            load.wait_for_responses()
            before = len(load.failures)
            service.kill_worker()
            load.wait_for_responses()  # now each client has new responses, also a client whose request was lost
            clients = [client for client, *_ in load.failures[before:]]
            assert len(set(clients)) == len(clients)  # each kill fails at most one request per client
            after = len(load.failures)
            load.wait_for_responses()
            assert load.failures[after:] == []
    assert {status for status, _ in load.answers} == {200}
    assert load.answers.total() > 1_000


@pytest.mark.slow
@pytest.mark.xdist_group("load")
def test_a_model_reload_fails_no_request_and_sigterm_finishes_those_accepted(start, images, model_dir):
    service = start(WEB_CONCURRENCY=2, MODEL_DIR=model_dir)
    graphs = [(RELEASE / "digits.onnx").read_bytes(), make_graph()]
    versions = [hashlib.sha256(graph).hexdigest()[:12] for graph in graphs]
    with Load(service.port, images) as load:
        for new in (1, 0, 1):
            load.wait_for_responses()
            put_graph(model_dir, graphs[new])
            service.reload()
            assert service.predict(images[:1]).json()["model"]["version"] == versions[new]
        load.wait_for_responses()
        assert load.failures == []
        assert service.stop() == 0
    assert set(load.answers) == {(200, version) for version in versions}
    # After SIGTERM, no request on a kept-alive connection fails. New connections are refused. Connections that
    # were still in the accept queue are reset.
    assert [failure for failure in load.failures if failure[2]] == []
    assert {what for _, what, _ in load.failures} <= {"ConnectionRefusedError", "ConnectionResetError"}
    assert sum(what == "ConnectionResetError" for _, what, _ in load.failures) <= 8


def test_an_invalid_new_model_is_refused(start, images, model_dir):
    service = start(WEB_CONCURRENCY=1, MODEL_DIR=model_dir)
    (worker,) = service.workers()
    for number, damage in enumerate((lambda folder: put_graph(folder, b"no graph"), shutil.rmtree), 1):
        damage(model_dir)
        service.process.send_signal(signal.SIGHUP)
        refusals = service.wait_for_lines("message", "the new model is refused", number)
        assert str(model_dir) in refusals[-1]["message"]
        assert service.predict(images[:1]).ok
        assert service.workers() == [worker]
    service.kill_worker()  # the worker that replaces it serves the old model, too
    service.wait(lambda: answers(service.url))
    assert service.predict(images[:1]).ok


@pytest.fixture
def arriving(start, images):
    """Return a service, and a connection to it on which half of a request's body has arrived."""
    service = start(WEB_CONCURRENCY=1)
    with service.connect() as connection:
        connection.sendall(HEAD + images[0].tobytes()[:400])
        service.wait(lambda: service.metrics()[IN_FLIGHT] == 2)  # the arriving request and the request for the metrics
        yield service, connection


def test_sigterm_waits_for_a_request_that_is_still_arriving(arriving, images):
    service, connection = arriving
    service.process.send_signal(signal.SIGTERM)
    service.wait(lambda: not answers(service.url))
    time.sleep(2)  # the service waits up to 30 seconds for the body
    connection.sendall(images[0].tobytes()[400:])
    assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    assert service.process.wait(PATIENCE) == 0


def test_sigint_does_not_wait_for_connections(arriving):
    service, connection = arriving
    service.process.send_signal(signal.SIGINT)
    assert connection.recv(100) == b""  # closed at once, without a 408 after 30 seconds
    assert service.process.wait(PATIENCE) == 0


@pytest.mark.slow
@pytest.mark.xdist_group("load")
def test_memory_does_not_grow(patient, images):
    forms = [
        request("/predict", "application/octet-stream", images[:50].tobytes()),
        request("/predict", "application/json", json.dumps({"image": images[0].tolist()}).encode()),
        request("/predict", "image/png", encode(images[0])),
        request("/predict", "image/png", b"nonsense"),
    ]

    def ask(_):
        """Send 20 requests at once, because a client in Python is slower than the service."""
        answers = patient.exchange(5 * b"".join(forms))
        assert (answers.count(b"HTTP/1.1 "), answers.count(b"HTTP/1.1 5")) == (20, 0)

    def memory():
        """Return the worker's own memory in kB. Pss would change when other processes load the same libraries."""
        # One worker: of several, one might get its first request, and grow, only after `early` is measured.
        (pid,) = patient.workers()
        return int(re.search(r"^Anonymous:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(80)))
        early = memory()
        list(pool.map(ask, range(400)))
    assert memory() <= 1.05 * early


def test_a_response_without_a_body_is_sent(service):
    answers = service.exchange(2 * b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answers.count(b"HTTP/1.1 200 ") == answers.count(b"\r\n\r\n") == 2


def test_no_client_may_set_the_path_by_a_header(service):
    answer = service.exchange(b"GET /healthz HTTP/1.1\r\nHost: x\r\nSCRIPT_NAME: /nowhere\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("log", ["on a full disk", "closed", "not read"])
def test_requests_are_served_if_the_log_cannot_be_written(images, log):
    reader, writer = os.pipe()
    file = {"on a full disk": Path("/dev/full"), "closed": None}.get(log, Path(f"/proc/self/fd/{writer}"))
    with ExitStack() as stack:
        stack.callback(os.close, writer)
        service = Service(file, WEB_CONCURRENCY=1)
        stack.callback(service.end)
        for _ in range(600 if log == "not read" else 5):  # a pipe holds about 300 lines
            assert service.predict(images[:1]).ok
        os.close(reader)
        before = service.metrics()["digits_log_lines_dropped_total", ()]
        assert before >= 5
        assert service.predict(images[:1]).ok
        assert service.metrics()["digits_log_lines_dropped_total", ()] > before
