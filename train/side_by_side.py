"""Tasks side by side, each in a process of its own; what they print appears as if one had run after the other."""

import io
import os
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any

import torch

from train.errors import TrainError


def side_by_side(tasks: list[Callable[[], None]]) -> None:
    """Run the `tasks`, which have to be picklable, on an even share of this process's threads each.

    They end when this process does, however that ends. Raises the TrainError of the first task that has one, and
    TrainError where a process is gone without an outcome.
    """
    context = get_context("spawn")  # a fork would have torch's locks but not its threads
    threads = max(1, torch.get_num_threads() // len(tasks))
    with ExitStack() as stack:
        said = []
        for task in tasks:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(task, threads, sender), daemon=True)
            process.start()
            sender.close()  # the child has its own: when that is gone, there is no more to receive
            stack.callback(_end, process)
            said.append(_heard(receiver))
        for messages in said:
            _repeat(messages)


def _work(task: Callable[[], None], threads: int, parent: Connection) -> None:
    """Do `task` in a child, tell the parent what it prints, as (stream, text), and at last its TrainError or None."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.stdout, sys.stderr = _Told(parent, "stdout"), _Told(parent, "stderr")
    torch.set_num_threads(threads)
    try:
        task()
    except TrainError as error:
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
    if parent:
        parent.join()
    os._exit(1)


def _end(process: BaseProcess) -> None:
    process.terminate()
    process.join()


def _heard(child: Connection) -> SimpleQueue[Any]:
    """Return what `child` says, for later: one that is not listened to would wait."""
    messages: SimpleQueue[Any] = SimpleQueue()

    def listen() -> None:
        try:
            while True:
                messages.put(child.recv())
        except EOFError:
            messages.put(TrainError("a training's process ended without an outcome: was it killed, for its memory?"))

    threading.Thread(target=listen, daemon=True).start()
    return messages


def _repeat(messages: SimpleQueue[Any]) -> None:
    """Print what a child prints until it has its outcome; raise that where it is an error."""
    while isinstance(message := messages.get(), tuple):
        name, text = message
        stream = getattr(sys, name)
        stream.write(text)
        stream.flush()
    if message is not None:
        raise message
