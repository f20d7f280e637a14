"""Tasks side by side, each in a process of its own; what they print appears as if one had run after the other."""

import io
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from train.errors import TrainError


def at_once(tasks: int) -> int:
    """Return how many of so many tasks run at the same time: as many as this process has threads, at most."""
    return min(tasks, torch.get_num_threads())


def side_by_side(tasks: list[Callable[[], None]]) -> None:
    """Run the `tasks`, which have to be picklable, `at_once`, on an even share of this process's threads each.

    They end when this process does, however that ends. Raises the TrainError or OSError of the first task that has one,
    and TrainError where a process is gone without an outcome.
    """
    context = get_context("spawn")  # a fork would have torch's locks but not its threads
    slots = at_once(len(tasks))
    waiting = deque(enumerate(tasks))
    running: dict[Any, int] = {}  # by the connection: which task
    said: list[deque[Any]] = [deque() for _ in tasks]
    shown = 0
    with ExitStack() as stack:
        while shown < len(tasks):
            while waiting and len(running) < slots:
                number, task = waiting.popleft()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(
                    target=_work, args=(task, torch.get_num_threads() // slots, sender), daemon=True
                )
                _start(process)
                stack.callback(_end, process)
                sender.close()  # the child has its own: when that is gone, there is no more to receive
                running[receiver] = number
            for child in wait(list(running)):
                message = _received(child)
                said[running[child]].append(message)
                if not isinstance(message, tuple):
                    del running[child]
            while shown < len(tasks) and said[shown]:
                shown += _repeat(said[shown].popleft())


def _start(process: BaseProcess) -> None:
    """Start `process` deaf to a terminal's Ctrl-C: this process hears it and ends the others."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)


def _received(child: Any) -> object:
    try:
        return child.recv()
    except (EOFError, OSError):
        return TrainError("a training's process ended without an outcome: was it killed, for its memory?")


def _repeat(message: Any) -> bool:
    """Print what a child printed; return whether it was its outcome instead, and raise that where it is an error."""
    if isinstance(message, tuple):
        name, text = message
        stream = getattr(sys, name)
        stream.write(text)
        stream.flush()
        return False
    if message is not None:
        raise message
    return True


def _work(task: Callable[[], None], threads: int, parent: Connection) -> None:
    """Do `task` in a child, tell the parent what it prints, as (stream, text), and at last its error or None."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout, sys.stderr = _Told(parent, "stdout"), _Told(parent, "stderr")
    torch.set_num_threads(threads)
    try:
        task()
    except (TrainError, OSError) as error:
        parent.send(error)
    else:
        parent.send(None)


class _Told(io.TextIOBase):
    """A stream whose text goes to the parent."""

    encoding = "utf-8"

    def __init__(self, parent: Connection, name: str) -> None:
        self._parent, self._name = parent, name

    def write(self, text: str) -> int:
        self._parent.send((self._name, text))
        return len(text)


def _end_with_parent() -> None:
    """Wait for the parent's end, of which a SIGKILL would tell nobody."""
    parent = parent_process()
    assert parent
    parent.join()
    os._exit(1)


def _end(process: BaseProcess) -> None:
    process.terminate()
    process.join()
