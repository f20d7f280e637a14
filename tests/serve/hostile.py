"""Hostile requests, and the measurement of their effect on other clients and on the worker's memory.

`CASES` maps a name to a raw HTTP request, as an iterator of bytes. Each request could block or kill the worker, and
some did so in an earlier version. Some pictures are made of bytes here, because Pillow cannot write them.
"""

import gzip
import io
import os
import re
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import requests
from PIL import Image

from tests.polling import PATIENCE
from tests.processes import children
from tests.serve.conftest import Service
from train.paths import ROOT

MIB = 2**20
BODY = 16 * MIB  # bytes: the default of MAX_BODY_BYTES
PICTURE = 8 * MIB  # bytes: serve.pictures.decoder_pool.MAX_BYTES
ENDLESS = 10**12
BLANK = Image.new("L", (28, 28), 128)

Parts = Iterator[bytes]


def head(path: str, content_type: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {content_type}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def request(path: str, content_type: str, body: bytes, *headers: str) -> bytes:
    return head(path, content_type, *headers, f"Content-Length: {len(body)}") + body


def post(content_type: str, body: bytes, path: str = "/predict") -> Parts:
    return iter([request(path, content_type, body)])


def chunked(path: str, content_type: str, chunks: Parts) -> Parts:
    return chain([head(path, content_type, "Transfer-Encoding: chunked")], chunks)


def one_byte_chunks(path: str, content_type: str, count: int = ENDLESS) -> Parts:
    return chunked(path, content_type, chain(repeat(b"1\r\n\0\r\n" * 10_000, count // 10_000), [b"0\r\n\r\n"]))


def endless(path: str, content_type: str) -> Parts:
    return chain([head(path, content_type, "Content-Length: 999999999999")], repeat(bytes(MIB), 10**6))


def packed(path: str, content_type: str, start: bytes, unit: bytes) -> Parts:
    """Return a request with a gzip body: `start`, then `unit` repeated until the body has about BODY bytes."""
    body = start + unit * ((BODY - 10) // len(unit))
    return iter([request(path, content_type, body, "Content-Encoding: gzip")])


def zeros(path: str, content_type: str) -> Parts:
    """Return a request whose gzip body unpacks to zeros. The repeated unit is one compressed MiB."""
    packer = zlib.compressobj(9, wbits=-15)
    mebibyte = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return packed(path, content_type, b"\x1f\x8b\x08" + bytes(7), mebibyte)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(content, kind, **options)
    return content.getvalue()


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, colour: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + data + png_chunk(b"IEND")


def with_chunks(content: bytes, chunks: bytes) -> bytes:
    return content[:33] + chunks + content[33:]


@cache
def png_small() -> bytes:
    """Return the slowest PNG that the worker still decodes in its own process: a digit, with compressed texts."""
    page = Image.new("1", (512, 512), 1)
    page.paste(0, (240, 61, 272, 450))
    texts = png_chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(1_000_000), 9))
    return with_chunks(encode(page), texts * 15)


@cache
def jpeg_of_many_scans(scans: int) -> bytes:
    """Return a progressive JPEG of 5000×5000 whose last scan, which refines every block, occurs `scans` times."""
    content = encode(Image.new("L", (5_000, 5_000), 128), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + content[-2:]


@cache
def webp() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (5_000, 5_000, 3), np.uint8)
    noise[:, :4_500] = 0  # with more noise, the file would exceed MAX_BYTES
    return encode(noise, "WEBP", lossless=True, method=0)


JSON, FORM, RAW = "application/json", "multipart/form-data; boundary=b", "application/octet-stream"
INFER = "/v2/models/digits/infer"
FILE = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'


def filled(start: str, item: str, end: str) -> bytes:
    return (start + item * ((BODY - 200) // len(item)) + end).encode()


def tensor_of_empty_lists() -> bytes:
    before, after = '{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,28,28],"data":[', "]}]}"
    return (before + ",".join(["[[]]"] * 780_000) + after).encode()


def form(part: bytes, tail: bytes = b"") -> bytes:
    return part * ((BODY - len(tail) - 100) // len(part)) + tail + b"\r\n--b--\r\n"


def many(content: bytes, count: int) -> bytes:
    return (FILE + content + b"\r\n") * count + b"--b--\r\n"


# Each function makes the body before `attack` opens the connection, because the service closes idle connections. The
# first word of a name is the kind of the request.
CASES: dict[str, Callable[[], Parts]] = {
    "PNG of many chunks": lambda: post(
        "image/png", with_chunks(encode(BLANK), png_chunk(b"teSt") * (PICTURE // 12 - 100))
    ),
    "PNG of 5000×5000": lambda: post("image/png", encode(Image.new("RGBA", (5_000, 5_000)))),
    "JPEG of 1,600 scans": lambda: post("image/jpeg", jpeg_of_many_scans(1_600)),
    "WebP of noise": lambda: post("image/webp", webp()),
    "/predict: millions of numbers as images": lambda: post(JSON, filled('{"images":[', "1,", "1]}")),
    "/predict: a body of opening brackets": lambda: post(JSON, filled('{"images":', "[", "")),
    "/predict: one number of millions of digits": lambda: post(JSON, filled('{"image":[', "1", "]}")),
    "/predict: base64 of blanks": lambda: post(JSON, filled('{"image":"', "AB ", '"}')),
    "/v2: millions of [[]], as many as pass": lambda: post(JSON, tensor_of_empty_lists(), INFER),
    "form of millions of parts": lambda: post(FORM, form(b"--b\r\n\r\n\r\n")),
    "form of line ends": lambda: post(FORM, form(b"\r\n", FILE)),
    "form of headers": lambda: post(FORM, form(b"--b\r\n" + b"a: b\r\n" * 100_000 + b"\r\n\r\n")),
    "300 large pictures": lambda: post(FORM, many(encode(Image.new("RGB", (3_000, 3_000))), 300)),
    "1,000 small PNGs": lambda: post(FORM, many(png_small(), 1_000)),
    "gzip of zeros in a form": lambda: zeros("/predict", FORM),
    "gzip of zeros to /v2": lambda: zeros(INFER, JSON),
    "gzip of empty members": lambda: packed("/predict", "image/png", b"", gzip.compress(b"")),
    "3 million one-byte chunks": lambda: one_byte_chunks("/predict", RAW, 3_000_000),
    "endless one-byte chunks to /predict": lambda: one_byte_chunks("/predict", RAW),
    "endless one-byte chunks in a form": lambda: one_byte_chunks("/predict", FORM),
    "endless one-byte chunks to /nowhere": lambda: one_byte_chunks("/nowhere", JSON),
    "endless one-byte chunks to /v2": lambda: one_byte_chunks(INFER, JSON),
    "endless body to /nowhere": lambda: endless("/nowhere", JSON),
    "endless body to /predict": lambda: endless("/predict", "image/png"),
    "endless trailers": lambda: chunked("/predict", JSON, chain([b"0\r\n"], repeat(b"a: b\r\n" * 1_000, 10**6))),
    "endless chunk extension": lambda: chunked("/predict", JSON, chain([b"2;"], repeat(b"a" * 10_000, 10**6))),
}


def attack(service: Service, parts: Parts) -> int | None:
    """Send a request until the service stops reading; return the response's status, or None without a response."""
    with service.connect() as connection:
        with suppress(OSError):  # the service has closed the connection; the response can still be read
            for part in parts:
                connection.sendall(part)
        with suppress(OSError):
            if found := re.match(rb"HTTP/1.1 (\d{3}) ", connection.recv(100)):
                return int(found[1])
    return None


class Bystander:
    """Sends requests of other clients to the worker all the time, and measures the memory of worker and decoders."""

    REQUESTS = (
        ("GET", "/healthz", None, {}),
        ("POST", "/predict?preprocess=none", bytes(784), {"Content-Type": "application/octet-stream"}),
        ("POST", "/predict", (ROOT / "docs/seven.png").read_bytes(), {"Content-Type": "image/png"}),
    )

    def __init__(self, service: Service) -> None:
        self.statuses: Counter[int] = Counter()
        self.blocked = 0.0  # seconds: maximum CPU time of the worker from a request to its response
        self.memory = 0.0  # MiB: maximum resident memory of the worker and its decoders
        self._service, (self._worker,) = service, service.workers()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=request) for request in self.REQUESTS]

    def __enter__(self) -> "Bystander":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert self._service.workers() == [self._worker]

    def _send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> None:
        while not self._stop.is_set():
            before, url = cpu_seconds(self._worker), self._service.url + path
            try:
                answer = requests.request(method, url, data=body, headers=headers, timeout=PATIENCE)
                self.statuses[answer.status_code] += 1
            except requests.RequestException:
                self.statuses[0] += 1
            self.blocked = max(self.blocked, cpu_seconds(self._worker) - before)
            self.memory = max(self.memory, resident(self._worker) + sum(map(resident, decoders(self._worker))))
            self._stop.wait(0.02)


def decoders(worker: int) -> list[int]:
    """Return the decoders of a worker. A child between fork and exec is left out: its memory is the worker's."""
    return [child for child in children(worker) if b"decoder_pool" in cmdline(child)]


def cmdline(process: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def resident(process: int) -> float:
    """Return the resident memory of a worker or decoder in MiB, or 0 if the process has ended."""
    with suppress(OSError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process in seconds. Unlike wall time, it does not depend on other programs."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
