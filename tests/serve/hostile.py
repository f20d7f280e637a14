"""Hostile requests, and the measurement of their effect on other clients and on the worker's memory.

`CASES` maps a name to a raw HTTP request, as an iterator of bytes. Each request blocked or killed an earlier
worker, or could do so. Most pictures are written byte by byte, because Pillow cannot write them.
"""

import gzip
import http.client
import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from itertools import chain, repeat
from pathlib import Path

import numpy as np
from PIL import Image

from tests.processes import children
from train.paths import ROOT

MIB = 2**20
BODY = 16 * MIB  # MAX_BODY_BYTES by default
PICTURE = 8 * MIB  # serve.pictures.decoder_pool.MAX_BYTES
ENDLESS = 10**12

Parts = Iterator[bytes]


def head(path: str, content_type: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {content_type}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def post(path: str, content_type: str, body: bytes) -> Parts:
    yield head(path, content_type, f"Content-Length: {len(body)}") + body


def picture(kind: str, content: bytes) -> Parts:
    return post("/predict", f"image/{kind}", content)


def chunked(path: str, content_type: str, chunks: Iterator[bytes]) -> Parts:
    return chain([head(path, content_type, "Transfer-Encoding: chunked")], chunks)


def packed(path: str, content_type: str, unit: bytes) -> Parts:
    """Return a request with a body of gzip: its header and `unit` as often as fits."""
    body = (b"\x1f\x8b\x08" + bytes(7) if unit[:2] != b"\x1f\x8b" else b"") + unit * ((BODY - 10) // len(unit))
    yield head(path, content_type, "Content-Encoding: gzip", f"Content-Length: {len(body)}") + body


def flushed_zeros() -> bytes:
    """Return a mebibyte of zeros as deflate that may be repeated."""
    packer = zlib.compressobj(9, wbits=-15)
    return packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)


def one_byte_chunks(count: int) -> Iterator[bytes]:
    return chain(repeat(b"1\r\n\0\r\n" * 10_000, count // 10_000), [b"0\r\n\r\n"])


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(content, kind, **options)
    return content.getvalue()


# PNG


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


def png_of_many_chunks() -> bytes:
    return png(28, 28, 8, 0, zlib.compress(bytes(28 * 29)), png_chunk(b"teSt") * (PICTURE // 12 - 100))


@cache
def png_of_many_texts() -> bytes:
    texts = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(60_000))) * 20_000
    return png(28, 28, 8, 0, zlib.compress(bytes(28 * 29)), texts[: PICTURE - 1_000])


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


def png_interlaced() -> bytes:
    return png(5_000, 5_000, 8, 6, deflated_zeros(5_000 * 20_005), interlace=1)


# JPEG


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def jpeg(side: int = 28) -> bytes:
    return encode(Image.new("L", (side, side), 128), "JPEG")


def jpeg_with(extra: bytes) -> bytes:
    return jpeg()[:2] + extra[: PICTURE - 2_000] + jpeg()[2:]


@cache
def jpeg_of_many_scans(scans: int) -> bytes:
    """Return a progressive JPEG of 5000×5000 with its last scan repeated; each repetition refines every block."""
    content = encode(Image.new("L", (5_000, 5_000), 128), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + content[-2:]


@cache
def mpo_of_many_scans(scans: int) -> bytes:
    """Return the same as a multi-picture file (CIPA DC-007), which Pillow treats as another format."""
    plain = Image.new("L", (5_000, 5_000), 128)
    two = encode(plain, "MPO", save_all=True, append_images=[Image.new("L", (28, 28))], progressive=True)
    second = two.index(b"\xff\xd8", 2)
    content = two[:second]
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + content[-2:] + two[second:]


# GIF and WebP


def gif(width: int, height: int, blocks: bytes, data: bytes) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return screen + blocks + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02" + data + b"\0;"


def gif_of_comments() -> bytes:
    return gif(28, 28, (b"!\xfe" + b"\x01a\0") * (PICTURE // 5 - 100), b"\x02\x4c\x01")


def gif_of_one_comment() -> bytes:
    return gif(28, 28, b"!\xfe" + b"\x01a" * (PICTURE // 2 - 100) + b"\0", b"\x02\x4c\x01")


def gif_of_clear_codes() -> bytes:
    """Return a GIF of 5000×5000 whose data consists of clear codes."""
    return gif(5_000, 5_000, b"", (b"\xff" + b"\x24\x49\x92" * 85) * (PICTURE // 256 - 10))


@cache
def webp(side: int, lossless: bool) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    if side > 2_000:
        noise[:, : side - 500] = 0  # otherwise it would exceed MAX_BYTES
    return encode(Image.fromarray(noise), "WEBP", lossless=lossless, method=0)


# JSON and forms


def infer(data: str) -> Parts:
    tensor = f'{{"name":"image","datatype":"UINT8","shape":[1,28,28],"data":{data}}}'
    return post("/v2/models/digits/infer", "application/json", f'{{"inputs":[{tensor}]}}'.encode())


def predict(body: str) -> Parts:
    return post("/predict", "application/json", body.encode())


def repeated(item: str) -> str:
    return item * ((BODY - 200) // len(item))


def form(part: bytes, tail: bytes = b"") -> Parts:
    body = part * ((BODY - len(tail) - 100) // len(part)) + tail + b"\r\n--b--\r\n"
    return post("/predict", "multipart/form-data; boundary=b", body)


FILE = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'


def many(content: bytes, count: int) -> Parts:
    """Return a form with the same picture `count` times."""
    body = (FILE + content + b"\r\n") * count + b"--b--\r\n"
    return post("/predict", "multipart/form-data; boundary=b", body)


CASES: dict[str, Callable[[], Parts]] = {
    # Bodies
    **{
        f"endless one-byte chunks to {path} as {content_type}": lambda path=path, content_type=content_type: chunked(
            path, content_type, one_byte_chunks(ENDLESS)
        )
        for path, content_type in (
            ("/predict", "application/octet-stream"),
            ("/predict", "text/plain"),
            ("/predict", "multipart/form-data; boundary=b"),
            ("/nowhere", "application/json"),
            ("/healthz", "application/json"),
            ("/v2/models/digits/infer", "application/json"),
        )
    },
    "3 million one-byte chunks": lambda: chunked("/predict", "application/octet-stream", one_byte_chunks(3_000_000)),
    "endless body to /nowhere": lambda: chain(
        [head("/nowhere", "application/json", "Content-Length: 999999999999")], repeat(bytes(MIB), 10**6)
    ),
    "endless body to /predict": lambda: chain(
        [head("/predict", "image/png", "Content-Length: 999999999999")], repeat(bytes(MIB), 10**6)
    ),
    "endless trailers": lambda: chunked(
        "/predict", "application/json", chain([b"2\r\n{}\r\n0\r\n"], repeat(b"a: b\r\n" * 1_000, 10**6))
    ),
    "endless chunk extension": lambda: chunked(
        "/predict", "application/json", chain([b"2;"], repeat(b"a" * 10_000, 10**6))
    ),
    **{
        f"gzip of zeros to {path} as {content_type}": lambda path=path, content_type=content_type: packed(
            path, content_type, flushed_zeros()
        )
        for path, content_type in (
            ("/predict", "application/json"),
            ("/predict", "multipart/form-data; boundary=b"),
            ("/v2/models/digits/infer", "application/json"),
        )
    },
    "gzip of empty members": lambda: packed("/predict", "image/png", gzip.compress(b"")),
    # Pictures
    "PNG of many chunks": lambda: picture("png", png_of_many_chunks()),
    "PNG of many texts": lambda: picture("png", png_of_many_texts()),
    "PNG 1×25,000,000 RGBA16": lambda: picture("png", png_large(1, 25_000_000, 16, 6, 4)),
    "PNG 25,000,000×1 RGBA16": lambda: picture("png", png_large(25_000_000, 1, 16, 6, 4)),
    "PNG 5000×5000 RGBA16": lambda: picture("png", png_large(5_000, 5_000, 16, 6, 4)),
    "PNG interlaced": lambda: picture("png", png_interlaced()),
    "JPEG of 400 scans": lambda: picture("jpeg", jpeg_of_many_scans(400)),
    "JPEG of 1,600 scans": lambda: picture("jpeg", jpeg_of_many_scans(1_600)),
    "MPO of 1,600 scans": lambda: picture("jpeg", mpo_of_many_scans(1_600)),
    "JPEG of Exif segments": lambda: picture("jpeg", jpeg_with(segment(0xE1, b"Exif\0\0MM\0*") * 600_000)),
    "JPEG of padding": lambda: picture("jpeg", jpeg_with(b"\xff" * PICTURE)),
    "JPEG of empty segments": lambda: picture("jpeg", jpeg_with(segment(0xEC, b"") * 2_000_000)),
    "JPEG of ICC segments": lambda: picture("jpeg", jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1\1") * 500_000)),
    "JPEG 5000×5000 in base64": lambda: predict(
        json.dumps({"image": ""}).replace('""', '"' + "/9j/" * 2_000_000 + '"')
    ),
    "GIF of comments": lambda: picture("gif", gif_of_comments()),
    "GIF of one comment": lambda: picture("gif", gif_of_one_comment()),
    "GIF of clear codes": lambda: picture("gif", gif_of_clear_codes()),
    "WebP lossless": lambda: picture("webp", webp(5_000, lossless=True)),
    "WebP lossy": lambda: picture("webp", webp(5_000, lossless=False)),
    "300 large pictures": lambda: many(png_large(3_000, 3_000, 8, 2, 3), 300),
    "1,000 small PNGs": lambda: many(png_small(), 1_000),
    # JSON and forms
    "/predict: millions of numbers as images": lambda: predict('{"images":[' + repeated("1,") + "1]}"),
    "/predict: millions of empty images": lambda: predict('{"images":[' + repeated("[],") + "[]]}"),
    "/predict: millions of texts": lambda: predict('{"images":[' + repeated('"",') + '""]}'),
    "/predict: a body of opening brackets": lambda: predict('{"images":' + repeated("[")),
    "/predict: one number of millions of digits": lambda: predict('{"image":[' + repeated("1") + "]}"),
    "/predict: base64 of blanks": lambda: predict('{"image":"' + repeated("AB ") + '"}'),
    "/predict: millions of fields": lambda: predict("{" + repeated('"a":1,') + '"b":1}'),
    "/predict: images nested in one": lambda: predict('{"image":[' + repeated("[1],") + "[1]]}"),
    "/v2: millions of [[]]": lambda: infer("[" + repeated("[[]],") + "[[]]]"),
    "/v2: millions of [[[]]], as many as pass": lambda: infer("[" + "[[]]," * 780_000 + "[[]]]"),
    "/v2: rows of nothing": lambda: infer("[[" + "[]," * 780_000 + "[]]]"),
    "/v2: millions of numbers": lambda: infer("[" + repeated("1,") + "1]"),
    "/v2: millions of outputs": lambda: post(
        "/v2/models/digits/infer",
        "application/json",
        ('{"inputs":[],"outputs":[' + repeated('{"name":"a"},') + "{}]}").encode(),
    ),
    "/v2: millions of parameters": lambda: post(
        "/v2/models/digits/infer",
        "application/json",
        ('{"inputs":[],"parameters":{"a":[' + repeated("{},") + "{}]}}").encode(),
    ),
    "form of millions of parts": lambda: form(b"--b\r\n\r\n\r\n"),
    "form of line ends": lambda: form(b"\r\n", FILE),
    "form of half boundaries": lambda: form(FILE[:0] + b"\r\n--", FILE),
    "form of one file of line ends": lambda: post(
        "/predict", "multipart/form-data; boundary=b", FILE + b"\r" * (BODY - 200) + b"\r\n--b--\r\n"
    ),
    "form of headers": lambda: form(b"--b\r\n" + b"a: b\r\n" * 100_000 + b"\r\n\r\n"),
}


def attack(address: tuple[str, int], parts: Parts) -> int | None:
    """Send a request until the service stops reading; return the response's status, or None without a response."""
    with socket.create_connection(address, timeout=60) as connection:
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

    def __init__(self, address: tuple[str, int], worker: int) -> None:
        self.statuses: Counter[int] = Counter()
        self.slowest = 0.0  # seconds from connecting to the end of the response
        self.memory = 0.0  # MiB: maximum resident memory
        self._address, self._worker = address, worker
        self._stop = threading.Event()
        tasks = [self._watch, *(lambda request=request: self._send(*request) for request in self.REQUESTS)]
        self._threads = [threading.Thread(target=task) for task in tasks]

    def __enter__(self) -> "Bystander":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            connection = http.client.HTTPConnection(*self._address, timeout=60)
            try:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                answer.read()
                self.statuses[answer.status] += 1
            except (OSError, http.client.HTTPException):
                self.statuses[0] += 1
            finally:
                connection.close()
            self.slowest = max(self.slowest, time.monotonic() - started)
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
