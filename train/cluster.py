"""Run tasks on a Ray cluster. Its machines have the libraries; this source and the tasks' data travel to them."""

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

TIMEOUT = 10  # seconds, of a cluster that does not answer; Ray itself would go on trying for a minute and more
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # with empty settings


def messages(
    address: str, tasks: Sequence[Callable[[Any], Any]], data: Any, gpu_share: float
) -> Generator[tuple[int, Message], None, None]:
    """Yield every message of the `tasks`, with the task's number, when that task ends.

    Each is called with `data`, on one CPU and `gpu_share` of a GPU where the cluster has one. Raises
    SettingsError where there is no Ray or no cluster at `address`, TrainError where the cluster fails.
    """
    try:
        import ray
    except ImportError as error:
        raise SettingsError("RAY_ADDRESS: expected Ray, found none; install the extra `sweep`") from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        _check_answers(address)
        # In a thread of its own: in the main one, ray.init would put its own handler in SIGTERM's place.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(
                ray.init,
                address=address,
                runtime_env={
                    "py_modules": [model, train],
                    "env_vars": {"SOURCE_REVISION": source_revision()},  # they have no checkout
                },
                log_to_driver=False,
                logging_level=logging.ERROR,
            ).result()
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise SettingsError(f"RAY_ADDRESS: expected a Ray cluster at {address}, found none") from error
    # Again, since Ray's C++ has put one before it that prints a stack trace.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    try:
        share = gpu_share if ray.cluster_resources().get("GPU", 0) > 0 else 0
        # A node that dies takes its tasks with it: Ray runs them again on another.
        remote = ray.remote(num_cpus=1, num_gpus=share, max_retries=3)(_perform)
        shared = ray.put(data)
        running = {remote.remote(task, shared): number for number, task in enumerate(tasks)}
        while running:
            (done,), _ = ray.wait(list(running))
            number = running.pop(done)
            for message in ray.get(done):
                yield number, message
    except ray.exceptions.RayTaskError:
        raise  # a bug, with its traceback
    except ray.exceptions.RayError as error:
        raise TrainError(f"Ray: {error}") from error
    finally:
        ray.shutdown()


def _perform(task: Callable[[Any], Any], shared: Any) -> list[Message]:
    """Do `task` on a machine of the cluster and return its messages."""
    sent: list[Message] = []
    perform(lambda: task(shared), 1, sent.append)
    return sent


def _check_answers(address: str) -> None:
    """Raise ConnectionError where what listens at `address` does not speak gRPC, which is HTTP/2, as Ray does."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal() or os.environ.get("RAY_USE_TLS") == "1":
        return  # Ray itself says what is wrong with it
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT) as connection:
            connection.sendall(HTTP2_PREFACE)
            answer = connection.recv(9)
    except (OSError, OverflowError) as error:
        raise ConnectionError from error
    if answer[3:4] != b"\x04":  # a frame of settings, which a server sends first
        raise ConnectionError
