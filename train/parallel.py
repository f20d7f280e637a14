"""Run independent tasks in parallel, in processes of this machine or, if RAY_ADDRESS is set, on a Ray cluster.

The tasks' output is printed in their order. One process and one pipe per task instead of concurrent.futures, whose pool
forwards no output, cannot end a running task (before Python 3.14), and does not say which task was killed.
"""

import ctypes
import io
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout, suppress
from functools import partial
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from train.errors import TrainError

# Do not import torch here: it takes seconds, and a child must be able to end with its parent from its first line on.

Shared = TypeVar("Shared")
Result = TypeVar("Result")
SIGNALS = (signal.SIGINT, signal.SIGTERM)
PR_SET_PDEATHSIG = 1  # of Linux's prctl


# ("stdout" or "stderr", text) any number of times, then ("result", the task's return value) or its error
Message = tuple[str, Any] | Exception
Send = Callable[[Message], object]


def run_all(
    tasks: Sequence[Callable[[Shared], Result]], shared: Shared, *, max_workers: int, gpu: bool = False
) -> Iterator[tuple[int, Result]]:
    """Call every task with `shared`, `max_workers` in parallel, and yield each task's number and result when it ends.

    With one worker the tasks run in this process. With more, each runs in a process with an equal part of torch's
    threads; tasks and `shared` must be picklable. The processes end with this one, even if it is killed. On a cluster a
    task has one thread and, with `gpu`, one GPU if there are any.

    Raises the TrainError or OSError of the first task, in their order, that has one, and TrainError if a process ends
    without a result.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        from train import cluster

        messages = cluster.messages(address, tasks, shared, gpu)
    elif max_workers > 1:
        import torch

        threads = max(1, torch.get_num_threads() // max_workers)
        messages = _messages(deque(enumerate(tasks)), shared, max_workers, threads)
    else:
        yield from ((number, task(shared)) for number, task in enumerate(tasks))
        return
    pending: list[deque[Message]] = [deque() for _ in tasks]  # not yet printed or raised
    current = 0  # the task whose messages are printed as they arrive
    with closing(messages):
        for number, message in messages:
            match message:
                case ("result", value):
                    yield number, value
            pending[number].append(message)
            while current < len(tasks) and pending[current]:
                match pending[current].popleft():
                    case Exception() as error:
                        raise error
                    case ("result", _):
                        current += 1
                    case (stream, text):
                        print(text, end="", file=getattr(sys, stream), flush=True)


def _messages(
    waiting: deque[tuple[int, Callable[[Any], Any]]], shared: Any, max_workers: int, threads: int
) -> Generator[tuple[int, Message], None, None]:
    """Run the `waiting` tasks and yield every message, with the task's number, as it arrives."""
    running: dict[Any, tuple[int, BaseProcess]] = {}  # by connection
    connection: Any
    try:
        while waiting or running:
            while waiting and len(running) < max_workers:
                number, task = waiting.popleft()
                connection, process = _start(partial(task, shared), threads)
                running[connection] = number, process
            for connection in wait(list(running)):
                number, process = running[connection]
                try:
                    message: Message = connection.recv()
                except (EOFError, OSError):
                    message = TrainError("a training process ended without a result: was it killed for its memory?")
                if isinstance(message, Exception) or message[0] == "result":
                    del running[connection]
                    process.join()
                    process.close()  # otherwise two file descriptors per task stay open
                yield number, message
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.join()


def _start(task: Callable[[], Any], threads: int) -> tuple[Connection, BaseProcess]:
    """Start `task` in a child process, and return the connection for its messages and the process."""
    context = get_context("spawn")  # a fork would copy torch's locks but not its threads
    connection, child_end = context.Pipe()
    process = context.Process(target=_work, args=(threads, child_end, os.getpid()), daemon=True)
    resource_tracker.ensure_running()  # otherwise started by the next lines, and it would unblock the signal
    # With SIGINT blocked in the child: this process handles Ctrl-C and ends its children. A child that starts while
    # this process ends prints a traceback, so signals are handled after the start. A mask alone does not delay them:
    # another thread receives them.
    pending: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _: pending.append(number)) for number in SIGNALS}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for received in pending:
        signal.raise_signal(received)
    child_end.close()  # so that recv raises EOFError when the child has ended
    with suppress(OSError):  # the child has already ended
        connection.send_bytes(pickle.dumps(task))
    return connection, process


def _work(threads: int, connection: Connection, parent: int) -> None:
    """Run the pickled task from `connection` in a child process."""
    if sys.platform == "linux":  # elsewhere a child without a parent ends at its next print
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before the call
            os._exit(1)
    try:
        content = connection.recv_bytes()
    except EOFError:  # the parent has ended
        os._exit(1)
    # Unpickled here, because that imports torch: from now on this process ends with its parent.
    perform(pickle.loads(content), threads, connection.send)


def perform(task: Callable[[], Any], threads: int, send: Send) -> None:
    """Run `task` with `threads` torch threads, `send` its output and, last, its result or error."""
    import torch

    torch.set_num_threads(threads)
    with redirect_stdout(_PipeWriter(send, "stdout")), redirect_stderr(_PipeWriter(send, "stderr")):
        try:
            outcome: Message = ("result", task())
        except (TrainError, OSError) as error:
            outcome = error
    send(outcome)


class _PipeWriter(io.TextIOBase):
    """A text stream that sends what is written to it as messages."""

    encoding = "utf-8"

    def __init__(self, send: Send, name: str) -> None:
        self._send, self._name = send, name

    def write(self, text: str) -> int:
        self._send((self._name, text))
        return len(text)
