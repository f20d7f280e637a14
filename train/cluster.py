"""Run tasks on a Ray cluster. Its machines need the libraries installed; source and data are sent to them."""

import logging
import os
import signal
import socket
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import model
import train
from train.errors import SettingsError, TrainError
from train.parallel import Message, perform
from train.provenance import source_revision

TIMEOUT = 10  # seconds; Ray itself retries for more than a minute
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # with an empty SETTINGS frame


def messages(
    address: str, tasks: Sequence[Callable[[Any], Any]], data: Any, gpu: bool
) -> Generator[tuple[int, Message], None, None]:
    """Run `tasks` and yield the messages of each, with the task's number, when that task ends.

    Each is called with `data`, on one CPU and, with `gpu`, one GPU if the cluster has any. Raises SettingsError if Ray
    is not installed or no cluster answers at `address`, and TrainError if the cluster fails.
    """
    try:
        import ray
    except ImportError as error:
        raise SettingsError("RAY_ADDRESS: expected Ray, found none; install the extra `sweep`") from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        _check_answers(address)
        # In another thread: in the main thread, ray.init would replace the handler of SIGTERM.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(
                ray.init,
                address=address,
                runtime_env={
                    "py_modules": [model, train],
                    "env_vars": {"SOURCE_REVISION": source_revision()},  # the machines have no checkout
                },
                log_to_driver=False,
                logging_level=logging.ERROR,
            ).result()
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise SettingsError(f"RAY_ADDRESS: expected a Ray cluster at {address}, found none") from error
    # Install our handler again: Ray's C++ code has added one that prints a stack trace.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    try:
        gpus = int(gpu and ray.cluster_resources().get("GPU", 0) > 0)
        # If a node fails, Ray runs its tasks again on another.
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_perform)
        shared = ray.put(data)
        running = {remote.remote(task, shared): number for number, task in enumerate(tasks)}
        while running:
            (done,), _ = ray.wait(list(running))
            number = running.pop(done)
            for message in ray.get(done):
                yield number, message
    except ray.exceptions.RayTaskError:
        raise  # a bug: keep its traceback
    except ray.exceptions.RayError as error:
        raise TrainError(f"Ray: {error}") from error
    finally:
        ray.shutdown()


def _perform(task: Callable[[Any], Any], shared: Any) -> list[Message]:
    """Run `task` on a machine of the cluster and return its messages."""
    sent: list[Message] = []
    perform(lambda: task(shared), 1, sent.append)
    return sent


def _check_answers(address: str) -> None:
    """Raise ConnectionError if no HTTP/2 server listens at `address`: Ray uses gRPC, which is based on HTTP/2."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal() or os.environ.get("RAY_USE_TLS") == "1":
        return  # ray.init handles these
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT) as connection:
            connection.sendall(HTTP2_PREFACE)
            answer = connection.recv(9)
    except (OSError, OverflowError) as error:
        raise ConnectionError from error
    if answer[3:4] != b"\x04":  # the SETTINGS frame, the first that a server sends
        raise ConnectionError
