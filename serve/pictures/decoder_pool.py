"""Sandboxed image decoding: a pool of processes with limits on CPU time and memory per picture.

A picture that is a decompression bomb or triggers a bug in a decoder thus cannot block or kill a worker. Each process,
`python -m serve.pictures.decoder_pool`, calls serve.pictures.decode. The process reads requests from standard input and
writes responses to standard output. A request and a response have a header with the payload's length, then the payload.

Exception: the worker itself decodes small PNGs, such as those of the drawing page, in less than 0.1 s and 20 MiB. A
separate process would add 0.35 ms of CPU time, which is a quarter of the time for a request with a PNG of 28×28.

Two alternatives do not work here. gunicorn's dirty workers are also separate processes, but their timeout does not stop
a computation. The library pebble waits on pipes that gevent does not patch, and would block the event loop.
"""

import logging
import os
import queue
import resource
import signal
import socket
import struct
import subprocess
import sys
import traceback
import warnings
import weakref
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, get_args

import numpy as np
from PIL import Image

from serve.pictures.decode import decode
from serve.pictures.preprocess import SIDE, Grey, ImageError, Preprocess

PROCESSES = 2  # per worker: while one process decodes a hostile picture, the other one decodes other pictures
MAX_BYTES = 8 * 2**20  # maximum size of an encoded picture; a phone's photo has 2 to 6 MB
CPU_SECONDS = 1.0  # per picture
MEMORY = 224 * 2**20  # bytes per picture, in addition to what the process uses before it decodes the picture
SMALL_BYTES, SMALL_PIXELS = 16 * 2**10, 512**2  # limits of the PNGs that the worker decodes itself
# Seconds without a response, after which a process is killed. On a busy machine, the start alone may take 10 seconds.
TIMEOUT = 30
# Decoding processes block these signals. Whoever stops the service may send the signals to all processes, but the
# decoding processes must still decode the pictures of current requests.
STOP = (signal.SIGINT, signal.SIGTERM)
# With these variables, glibc returns every freed block of 4 MiB or more to the system. Memory that glibc keeps after a
# picture would count as used before the next picture, and would raise the limit for that picture (see _limit_memory).
MALLOC = {"MALLOC_MMAP_THRESHOLD_": f"{4 * 2**20}", "MALLOC_TRIM_THRESHOLD_": f"{16 * 2**20}"}

USAGE = Path("/proc/self/statm")  # the first number in this file is the size of the address space, in pages
PNG_START, PNG_HEADER = b"\x89PNG\r\n\x1a\n", struct.Struct(">16xII")  # the header has width and height
REQUEST = struct.Struct("<BIQ")  # index of `preprocess` in Preprocess, max_pixels, length of the payload
RESPONSE = struct.Struct("<BQ")  # DECODED, REFUSED, TOO_LARGE or FAILED; length of the payload
DECODED, REFUSED, TOO_LARGE, FAILED = range(4)

EXCEEDED = (
    f"expected a picture that is decoded within {CPU_SECONDS:g} s of CPU time and {MEMORY // 2**20} MiB of memory, "
    "found one that exceeds a limit"
)


class DecoderPool:
    """A worker's decoding processes. The first starts at once, the second with the second picture that is not small."""

    def __init__(self, max_pixels: int) -> None:
        if not USAGE.exists():
            logging.getLogger("serve").warning("without /proc, the memory of the picture decoders is not limited")
        self._max_pixels = max_pixels
        self._processes: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        self._processes.put(_Process())
        for _ in range(PROCESSES - 1):
            self._processes.put(None)

    def decode(self, content: bytes, preprocess: Preprocess = "auto") -> Grey:
        """Return serve.pictures.decode.decode(content, preprocess), uint8 [28, 28].

        Raises ImageError if that function does, or if the picture exceeds a limit. Any other exception in the process
        is a bug: it is raised here as a RuntimeError with the traceback.
        """
        if len(content) > MAX_BYTES:
            raise ImageError(f"expected a picture of at most {MAX_BYTES:,} bytes, found {len(content):,}")
        if _is_small(content):
            # The pixels are limited again, because a second IHDR chunk, later in the file, may state a larger size.
            return decode(content, preprocess, min(SMALL_PIXELS, self._max_pixels))
        process = self._processes.get()
        try:
            if process is None or process.child.poll() is not None:  # not started yet, or killed by the OOM killer
                process = _Process()
            kind, payload = process.call(
                REQUEST.pack(get_args(Preprocess).index(preprocess), self._max_pixels, len(content)), content
            )
        except BaseException:  # kill the process, because its next caller would get the response to this call
            if process:
                process.kill()
            process = _Process()
            raise
        finally:
            self._processes.put(process)
        if kind == DECODED:
            return np.frombuffer(payload, np.uint8).reshape(SIDE, SIDE)
        if kind == FAILED:
            raise RuntimeError(payload.decode(errors="replace"))
        raise ImageError(EXCEEDED if kind == TOO_LARGE else payload.decode())


def _is_small(content: bytes) -> bool:
    """Return whether `content` is a PNG of at most SMALL_BYTES and, by its header, at most SMALL_PIXELS."""
    if not content.startswith(PNG_START) or not PNG_HEADER.size <= len(content) <= SMALL_BYTES:
        return False
    width, height = PNG_HEADER.unpack_from(content)
    return bool(width * height <= SMALL_PIXELS)


class _Process:
    """One decoding process and the socket to it."""

    def __init__(self) -> None:
        self._socket, remote = socket.socketpair()
        self._socket.settimeout(TIMEOUT)
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # the child process inherits the blocked signals
        try:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "serve.pictures.decoder_pool"],
                stdin=remote.fileno(),
                stdout=remote.fileno(),
                stderr=subprocess.DEVNULL,  # discards the warnings of the decoding libraries
                cwd=Path(__file__).parent.parent.parent,
                env={**os.environ, **MALLOC},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)
            remote.close()
        self._responses = self._socket.makefile("rb")
        # _kill runs when self.kill() is called, when this object is garbage-collected, or when the worker exits.
        self.kill = weakref.finalize(self, _kill, self.child, self._responses, self._socket)

    def call(self, header: bytes, content: bytes) -> tuple[int, bytes]:
        """Send a request. Return the response's kind and payload. Raises ImageError if the process exits or hangs."""
        try:
            self._socket.sendall(header)
            self._socket.sendall(content)  # sent separately: header + content would copy content, which may be large
            kind, size = RESPONSE.unpack(self._responses.read(RESPONSE.size))
            return kind, self._responses.read(size)
        except (OSError, struct.error):
            raise ImageError(EXCEEDED) from None


def _kill(process: "subprocess.Popen[bytes]", *streams: BinaryIO | socket.socket) -> None:
    process.kill()
    for stream in streams:
        stream.close()
    process.wait()


def _limit_memory() -> None:
    if not USAGE.exists():
        return
    limit = int(USAGE.read_text().split()[0]) * resource.getpagesize() + MEMORY
    with suppress(ValueError):  # ValueError: the hard limit is lower and already applies
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def serve(requests: BinaryIO, responses: BinaryIO) -> None:
    """Serve requests until the end of the input."""
    Image.init()  # load Pillow's plugins now, so that they use no memory of the first picture's limit
    while header := requests.read(REQUEST.size):
        preprocess, max_pixels, size = REQUEST.unpack(header)
        content = requests.read(size)
        _limit_memory()
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # after this time, SIGPROF kills the process
        try:
            kind, payload = DECODED, decode(content, get_args(Preprocess)[preprocess], max_pixels).tobytes()
        except ImageError as error:
            kind, payload = REFUSED, str(error).encode()
        except MemoryError:
            kind, payload = TOO_LARGE, b""
        except Exception:
            kind, payload = FAILED, traceback.format_exc().encode()
        signal.setitimer(signal.ITIMER_PROF, 0)
        responses.write(RESPONSE.pack(kind, len(payload)) + payload)
        responses.flush()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with suppress(ConnectionError):  # ConnectionError: the worker has exited
        serve(sys.stdin.buffer, sys.stdout.buffer)
