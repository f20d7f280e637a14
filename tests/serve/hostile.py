"""Hostile requests, and the measurement of their effect on other clients and on the worker's memory.

`CASES` maps a name to a raw HTTP request, as an iterator of bytes. Each request blocked or killed an earlier
worker, or could do so. Most pictures are written byte by byte, because Pillow cannot write them.
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
from functools import cache, partial
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
BODY = 16 * MIB  # MAX_BODY_BYTES by default
PICTURE = 8 * MIB  # serve.pictures.decoder_pool.MAX_BYTES
ENDLESS = 10**12

Parts = Iterator[bytes]


def head(path: str, content_type: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {content_type}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def request(path: str, content_type: str, body: bytes, *headers: str) -> bytes:
    return head(path, content_type, *headers, f"Content-Length: {len(body)}") + body


def post(path: str, content_type: str, make: Callable[[], bytes]) -> Parts:
    """Return a request. Its body is made here: an open connection would be closed meanwhile."""
    return iter([request(path, content_type, make())])


def chunked(path: str, content_type: str, chunks: Parts) -> Parts:
    return chain([head(path, content_type, "Transfer-Encoding: chunked")], chunks)


def endless(path: str, content_type: str) -> Parts:
    return chain([head(path, content_type, "Content-Length: 999999999999")], repeat(bytes(MIB), 10**6))


def packed(path: str, content_type: str, unit: bytes) -> Parts:
    """Return a request with a body of gzip: its header and `unit` as often as fits."""
    body = (b"\x1f\x8b\x08" + bytes(7) if unit[:2] != b"\x1f\x8b" else b"") + unit * ((BODY - 10) // len(unit))
    yield request(path, content_type, body, "Content-Encoding: gzip")


def flushed_zeros() -> bytes:
    """Return a mebibyte of zeros as deflate that may be repeated."""
    packer = zlib.compressobj(9, wbits=-15)
    return packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)


def one_byte_chunks(path: str, content_type: str, count: int = ENDLESS) -> Parts:
    return chunked(path, content_type, chain(repeat(b"1\r\n\0\r\n" * 10_000, count // 10_000), [b"0\r\n\r\n"]))


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(content, kind, **options)
    return content.getvalue()


# PNG

BLANK = zlib.compress(bytes(28 * 29))  # the rows of 28×28 pixels


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"", interlace: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    data = png_chunk(b"IDAT", rows)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + data + png_chunk(b"IEND")


@cache
def deflated_zeros(size: int) -> bytes:
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(MIB)) for _ in range(size // MIB)]
    return b"".join([*parts, packer.compress(bytes(size % MIB)), packer.flush()])


@cache
def png_of_many_texts() -> bytes:
    texts = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(60_000))) * 20_000
    return png(28, 28, 8, 0, BLANK, texts[: PICTURE - 1_000])


@cache
def png_small() -> bytes:
    """Return the slowest PNG that the worker still decodes in its own process: a digit, with compressed texts."""
    rows = b"".join(
        b"\0" + (b"\xff" * 30 + b"\0" * 4 + b"\xff" * 30 if 60 < y < 450 else b"\xff" * 64) for y in range(512)
    )
    texts = png_chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(1_000_000), 9))
    return png(512, 512, 1, 0, zlib.compress(rows, 9), texts * 15)


def png_large(width: int, height: int, depth: int, colour: int, samples: int) -> bytes:
    return png(width, height, depth, colour, deflated_zeros(height * (1 + width * samples * depth // 8)))


# JPEG


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg_with(extra: bytes) -> bytes:
    plain = encode(Image.new("L", (28, 28), 128), "JPEG")
    return plain[:2] + extra[: PICTURE - 2_000] + plain[2:]


@cache
def jpeg_of_many_scans(scans: int) -> bytes:
    """Return a progressive JPEG of 5000×5000 with its last scan repeated; each repetition refines every block."""
    content = encode(Image.new("L", (5_000, 5_000), 128), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + content[-2:]


# GIF and WebP


def gif(width: int, height: int, blocks: bytes, data: bytes) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return screen + blocks + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02" + data + b"\0;"


@cache
def webp() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (5_000, 5_000, 3), np.uint8)
    noise[:, :4_500] = 0  # otherwise it would exceed MAX_BYTES
    return encode(noise, "WEBP", lossless=True, method=0)


# JSON and forms

JSON, FORM, RAW = "application/json", "multipart/form-data; boundary=b", "application/octet-stream"
INFER = "/v2/models/digits/infer"
FILE = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'


def filled(start: str, item: str, end: str) -> bytes:
    """Return a body of 16 MiB: `item` as often as fits."""
    return (start + item * ((BODY - 200) // len(item)) + end).encode()


def infer(item: str, count: int) -> bytes:
    """Return a request to /v2 whose tensor has `item` as its values, `count` times."""
    before, after = '{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,28,28],"data":[', "]}]}"
    return (before + ",".join([item] * count) + after).encode()


def form(part: bytes, tail: bytes = b"") -> bytes:
    return part * ((BODY - len(tail) - 100) // len(part)) + tail + b"\r\n--b--\r\n"


def many(content: bytes, count: int) -> bytes:
    """Return a form with the same picture `count` times."""
    return (FILE + content + b"\r\n") * count + b"--b--\r\n"


PICTURES: dict[str, Callable[[], bytes]] = {  # the first word is the format
    "PNG of many chunks": lambda: png(28, 28, 8, 0, BLANK, png_chunk(b"teSt") * (PICTURE // 12 - 100)),
    "PNG of many texts": png_of_many_texts,
    "PNG 1×25,000,000 RGBA16": lambda: png_large(1, 25_000_000, 16, 6, 4),
    "PNG 5000×5000 RGBA16": lambda: png_large(5_000, 5_000, 16, 6, 4),
    "PNG interlaced": lambda: png(5_000, 5_000, 8, 6, deflated_zeros(5_000 * 20_005), interlace=1),
    "JPEG of 1,600 scans": lambda: jpeg_of_many_scans(1_600),
    "JPEG of Exif segments": lambda: jpeg_with(segment(0xE1, b"Exif\0\0MM\0*") * 600_000),
    "JPEG of ICC segments": lambda: jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1\1") * 500_000),
    "GIF of comments": lambda: gif(28, 28, (b"!\xfe" + b"\x01a\0") * (PICTURE // 5 - 100), b"\x02\x4c\x01"),
    "GIF of clear codes": lambda: gif(5_000, 5_000, b"", (b"\xff" + b"\x24\x49\x92" * 85) * (PICTURE // 256 - 10)),
    "WebP of noise": webp,
}
OBJECTS: dict[str, Callable[[], bytes]] = {
    "JPEG in base64": lambda: b'{"image": "' + b"/9j/" * 2_000_000 + b'"}',
    "/predict: millions of numbers as images": lambda: filled('{"images":[', "1,", "1]}"),
    "/predict: a body of opening brackets": lambda: filled('{"images":', "[", ""),
    "/predict: one number of millions of digits": lambda: filled('{"image":[', "1", "]}"),
    "/predict: base64 of blanks": lambda: filled('{"image":"', "AB ", '"}'),
    "/predict: images nested in one": lambda: filled('{"image":[', "[1],", "[1]]}"),
    "/v2: millions of [[]], as many as pass": lambda: infer("[[]]", 780_000),
    "/v2: millions of numbers": lambda: infer("1", 8_000_000),
    "/v2: millions of outputs": lambda: filled('{"inputs":[],"outputs":[', '{"name":"a"},', "{}]}"),
}
FORMS: dict[str, Callable[[], bytes]] = {
    "form of millions of parts": lambda: form(b"--b\r\n\r\n\r\n"),
    "form of line ends": lambda: form(b"\r\n", FILE),
    "form of headers": lambda: form(b"--b\r\n" + b"a: b\r\n" * 100_000 + b"\r\n\r\n"),
    "300 large pictures": lambda: many(png_large(3_000, 3_000, 8, 2, 3), 300),
    "1,000 small PNGs": lambda: many(png_small(), 1_000),
}
CHUNKED = [("/predict", RAW), ("/predict", FORM), ("/nowhere", JSON), ("/healthz", JSON), (INFER, JSON)]

CASES: dict[str, Callable[[], Parts]] = {
    **{f"endless one-byte chunks to {path} as {kind}": partial(one_byte_chunks, path, kind) for path, kind in CHUNKED},
    "3 million one-byte chunks": partial(one_byte_chunks, "/predict", RAW, 3_000_000),
    "endless body to /nowhere": lambda: endless("/nowhere", JSON),
    "endless body to /predict": lambda: endless("/predict", "image/png"),
    "endless trailers": lambda: chunked("/predict", JSON, chain([b"0\r\n"], repeat(b"a: b\r\n" * 1_000, 10**6))),
    "endless chunk extension": lambda: chunked("/predict", JSON, chain([b"2;"], repeat(b"a" * 10_000, 10**6))),
    **{
        f"gzip of zeros to {path} as {kind}": partial(packed, path, kind, flushed_zeros())
        for path, kind in (("/predict", JSON), ("/predict", FORM), (INFER, JSON))
    },
    "gzip of empty members": lambda: packed("/predict", "image/png", gzip.compress(b"")),
    **{name: partial(post, "/predict", f"image/{name.split()[0].lower()}", make) for name, make in PICTURES.items()},
    **{
        name: partial(post, INFER if name.startswith("/v2") else "/predict", JSON, make)
        for name, make in OBJECTS.items()
    },
    **{name: partial(post, "/predict", FORM, make) for name, make in FORMS.items()},
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
    """Continuous requests of other clients to the same worker, and the memory of the worker and its decoders."""

    REQUESTS = (
        ("GET", "/healthz", None, {}),
        ("POST", "/predict?preprocess=none", bytes(784), {"Content-Type": "application/octet-stream"}),
        ("POST", "/predict", (ROOT / "docs/seven.png").read_bytes(), {"Content-Type": "image/png"}),
    )

    def __init__(self, service: Service) -> None:
        self.statuses: Counter[int] = Counter()
        self.blocked = 0.0  # seconds of CPU time that the worker took between a request and its answer, at most
        self.memory = 0.0  # MiB: maximum resident memory
        self._service, (self._worker,) = service, service.workers()
        self._stop = threading.Event()
        tasks = [self._watch, *(partial(self._send, *request) for request in self.REQUESTS)]
        self._threads = [threading.Thread(target=task) for task in tasks]

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
            self._stop.wait(0.02)

    def _watch(self) -> None:
        while not self._stop.is_set():
            with suppress(OSError):  # a decoder or the worker has just exited
                decoders = filter(is_decoder, children(self._worker))
                self.memory = max(self.memory, resident(self._worker) + sum(map(resident, decoders)))
            self._stop.wait(0.02)


def is_decoder(process: int) -> bool:
    """Return whether a child of the worker runs the decoder. Between fork and exec, it shares the worker's memory."""
    return b"serve.pictures.decoder_pool" in Path(f"/proc/{process}/cmdline").read_bytes()


def resident(process: int) -> float:
    """Return the resident memory of a process in MiB."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def cpu_seconds(process: int) -> float:
    """Return the CPU time that a process has taken: other programs on a busy machine do not count."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
