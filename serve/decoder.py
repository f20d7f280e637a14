"""Decode pictures in processes of their own, each with a limit of CPU time and memory, killed when it exceeds either.

So no picture, whatever a decoder's bug or a bomb makes of it, can hold or kill a worker. `python -m serve.decoder` is
such a process: it reads requests from its standard input and answers them on its standard output, each a header and a
payload of the length that the header says.

A small PNG, what a drawing page sends, is decoded in the worker: nothing that it can hold takes 0.1 s or 20 MiB, and
the way to another process would cost a fifth of the service's rate.

Neither gunicorn's dirty workers nor pebble does this beside gevent: the former's timeout leaves a worker running that
computes, and the latter waits for its processes on pipes that gevent does not patch.
"""

import os
import queue
import resource
import signal
import socket
import struct
import subprocess
import sys
import warnings
import weakref
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, get_args

import numpy as np

from serve.images import decode
from serve.preprocess import SIDE, Grey, ImageError, Preprocess

PROCESSES = 2  # a worker: while one decodes a hostile picture, the other serves everyone else
CPU_SECONDS = 1.0  # a picture
MEMORY = 224 * 2**20  # bytes a picture, beside what the process has when it starts
SMALL_BYTES, SMALL_PIXELS = 16 * 2**10, 512**2  # of a PNG that the worker decodes itself
WALL_SECONDS = 10  # a picture, where a process stands still or the machine is overloaded

PNG_START, PNG_HEADER = b"\x89PNG\r\n\x1a\n", struct.Struct(">16xII")  # the latter: width and height
REQUEST = struct.Struct("<BIQ")  # index of preprocess, max_pixels, bytes that follow
ANSWER = struct.Struct("<BQ")  # one of the following, bytes that follow
DECODED, REFUSED, TOO_LARGE, FAILED = range(4)

EXCEEDED = (
    f"expected a picture that is decoded within {CPU_SECONDS:g} s of CPU time and {MEMORY // 2**20} MiB of memory, "
    "found one that is not"
)


class DecoderError(RuntimeError):
    """The decoding process raised what it should not; the message is its traceback."""


class Decoders:
    """The decoding processes of one worker. The first starts at once, the others when they are needed."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._processes: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        self._processes.put(_Process())
        for _ in range(PROCESSES - 1):
            self._processes.put(None)

    def decode(self, content: bytes, preprocess: Preprocess = "auto") -> Grey:
        """Return what serve.images.decode does of `content`, uint8 [28, 28].

        Raises ImageError as that does, and where the picture needs more than a picture may; DecoderError for a bug.
        """
        if _is_small(content):
            return decode(content, preprocess, min(SMALL_PIXELS, self._max_pixels))  # its header may lie
        process = self._processes.get()
        try:
            if process is None or process.has_ended():  # killed while idle: by the kernel, short of memory, say
                process = _Process()
            kind, payload = process.ask(
                REQUEST.pack(get_args(Preprocess).index(preprocess), self._max_pixels, len(content)), content
            )
        except BaseException as error:  # the request's timeout too: an answer that nobody reads may be on its way
            if process:
                process.kill()
            process = _Process()
            if isinstance(error, OSError | EOFError):
                raise ImageError(EXCEEDED) from None
            raise
        finally:
            self._processes.put(process)
        if kind == DECODED:
            return np.frombuffer(payload, np.uint8).reshape(SIDE, SIDE)
        if kind == FAILED:
            raise DecoderError(payload.decode(errors="replace"))
        raise ImageError(EXCEEDED if kind == TOO_LARGE else payload.decode())


def _is_small(content: bytes) -> bool:
    """Return whether `content` is a PNG of few bytes whose header says that it has few pixels."""
    if not content.startswith(PNG_START) or not PNG_HEADER.size <= len(content) <= SMALL_BYTES:
        return False
    width, height = PNG_HEADER.unpack_from(content)
    return bool(width * height <= SMALL_PIXELS)


class _Process:
    """One decoding process, and the socket to it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(WALL_SECONDS)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serve.decoder"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,  # where decoders of pictures write lines of their own
                cwd=Path(__file__).parent.parent,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        self._answers = self._socket.makefile("rb")
        # Called, or with the last reference gone, or at the worker's end: ends the process, whatever it does.
        self.kill = weakref.finalize(self, _kill, self._process, self._answers, self._socket)

    def has_ended(self) -> bool:
        """Return whether the process is gone."""
        return self._process.poll() is not None

    def ask(self, head: bytes, content: bytes) -> tuple[int, bytes]:
        """Return the answer's kind and payload. Raises OSError or EOFError where the process ended or is too slow."""
        self._socket.sendall(head + content)
        kind, size = ANSWER.unpack(_read(self._answers, ANSWER.size))
        return kind, _read(self._answers, size)


def _kill(process: "subprocess.Popen[bytes]", *streams: BinaryIO | socket.socket) -> None:
    process.kill()
    for stream in streams:
        stream.close()
    process.wait()


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError(f"expected {size} bytes, found {len(data)}")
    return data


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _answer(preprocess: Preprocess, max_pixels: int, content: bytes) -> tuple[int, bytes]:
    try:
        return DECODED, decode(content, preprocess, max_pixels).tobytes()
    except ImageError as error:
        return REFUSED, str(error).encode()
    except MemoryError:
        return TOO_LARGE, b""
    except Exception:
        import traceback

        return FAILED, traceback.format_exc().encode()


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    _limit_memory()
    while head := requests.read(REQUEST.size):
        preprocess, max_pixels, size = REQUEST.unpack(head)
        content = _read(requests, size)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # SIGPROF, when it is over, ends the process
        kind, payload = _answer(get_args(Preprocess)[preprocess], max_pixels, content)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(ANSWER.pack(kind, len(payload)) + payload)
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for gunicorn, which lets requests end
    warnings.simplefilter("ignore")
    with suppress(BrokenPipeError, EOFError, ConnectionError):  # the worker is gone
        serve(sys.stdin.buffer, sys.stdout.buffer)
