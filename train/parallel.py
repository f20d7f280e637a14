"""Run independent tasks in parallel: in processes of this machine or, where RAY_ADDRESS names one, on a Ray cluster.

What they print appears as if one had run after the other. A process and a pipe a task, and not concurrent.futures: its
pool passes no output on, ends no task that runs (before Python 3.14), and does not tell which one was killed.
"""

import ctypes
import io
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, redirect_stderr, redirect_stdout, suppress
from functools import partial
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from train.errors import TrainError

# Nothing of torch is imported here: it takes seconds, and a child is to end with its parent from its first line on.

Shared = TypeVar("Shared")
Result = TypeVar("Result")
PR_SET_PDEATHSIG = 1  # of Linux's prctl


# ("stdout" or "stderr", text) any number of times, then ("result", what the task returned) or its error
Message = tuple[str, Any] | Exception
Send = Callable[[Message], object]


def run_all(
    tasks: Sequence[Callable[[Shared], Result]], shared: Shared, *, at_once: int, gpu_share: float = 0
) -> Iterator[tuple[int, Result]]:
    """Call every task with `shared`, so many `at_once`, and yield each one's number and result as soon as it ends.

    With `at_once` 1 they run in this process; else both have to be picklable, and each has an even share of torch's
    threads. The tasks end when this process does, however that ends. On a cluster a task has one thread and `gpu_share`
    of a GPU.

    Raises the TrainError or OSError of the first task, in their order, that has one, and TrainError where a process is
    gone without an outcome.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        from train import cluster

        messages = cluster.messages(address, tasks, shared, gpu_share)
    elif at_once > 1:
        import torch

        messages = _messages(deque(enumerate(tasks)), shared, at_once, max(1, torch.get_num_threads() // at_once))
    else:
        yield from ((number, task(shared)) for number, task in enumerate(tasks))
        return
    unsaid: list[deque[Message]] = [deque() for _ in tasks]
    turn = 0  # of the task whose messages are printed, or raised, as they come
    with closing(messages):
        for number, message in messages:
            match message:
                case ("result", value):
                    yield number, value
            unsaid[number].append(message)
            while turn < len(tasks) and unsaid[turn]:
                match unsaid[turn].popleft():
                    case Exception() as error:
                        raise error
                    case ("result", _):
                        turn += 1
                    case (stream, text):
                        print(text, end="", file=getattr(sys, stream), flush=True)


def _messages(
    waiting: deque[tuple[int, Callable[[Any], Any]]], shared: Any, at_once: int, threads: int
) -> Generator[tuple[int, Message], None, None]:
    """Yield every message of the `waiting` tasks, with the task's number, as it arrives."""
    running: dict[Any, int] = {}  # by the connection: the number of its task
    with ExitStack() as stack:
        while waiting or running:
            while waiting and len(running) < at_once:
                number, task = waiting.popleft()
                running[_start(partial(task, shared), threads, stack)] = number
            child: Any
            for child in wait(list(running)):
                number = running[child]
                try:
                    message: Message = child.recv()
                except (EOFError, OSError):
                    message = TrainError(
                        "a training's process ended without an outcome: was it killed, for its memory?"
                    )
                if isinstance(message, Exception) or message[0] == "result":
                    del running[child]
                yield number, message


def _start(task: Callable[[], Any], threads: int, stack: ExitStack) -> Connection:
    """Start `task` in a process, which `stack` ends, and return the connection on which it speaks."""
    context = get_context("spawn")  # a fork would have torch's locks but not its threads
    connection, childs = context.Pipe()
    process = context.Process(target=_work, args=(threads, childs, os.getpid()), daemon=True)
    resource_tracker.ensure_running()  # else started by the next line, and it would unblock the signal
    # Deaf to a terminal's Ctrl-C: this process hears it and ends the others.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    stack.callback(process.join)
    stack.callback(process.terminate)  # before it is joined
    childs.close()  # the child has its own: when that is gone, there is no more to receive
    with suppress(OSError):  # it is gone
        connection.send_bytes(pickle.dumps(task))
    return connection


def _work(threads: int, connection: Connection, parent: int) -> None:
    """Do the pickled task that `connection` brings, in a child process."""
    if sys.platform == "linux":  # elsewhere a child ends when it next prints, into a pipe that nobody reads
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before
            os._exit(1)
    # Received, and what it needs imported, once this process ends with its parent.
    perform(pickle.loads(connection.recv_bytes()), threads, connection.send)


def perform(task: Callable[[], Any], threads: int, send: Send) -> None:
    """Do `task` on so many torch threads, `send` what it prints and, at last, its outcome."""
    import torch

    torch.set_num_threads(threads)
    with redirect_stdout(_Sender(send, "stdout")), redirect_stderr(_Sender(send, "stderr")):
        try:
            outcome: Message = ("result", task())
        except (TrainError, OSError) as error:
            outcome = error
    send(outcome)


class _Sender(io.TextIOBase):
    """A stream whose text is sent."""

    encoding = "utf-8"

    def __init__(self, send: Send, name: str) -> None:
        self._send, self._name = send, name

    def write(self, text: str) -> int:
        self._send((self._name, text))
        return len(text)
