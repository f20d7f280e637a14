"""Sandboxed decoding: a process that exceeds its limits is killed and replaced, and the other processes continue."""

import io
import signal
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from serve.pictures import decoder_pool
from serve.pictures.decode import decode
from serve.pictures.decoder_pool import PROCESSES, DecoderPool
from serve.pictures.preprocess import ImageError
from tests.polling import PATIENCE, wait
from tests.serve.hostile import encode, jpeg_of_many_scans, png, png_chunk, png_small, with_chunks
from train.paths import ROOT

MAX_PIXELS = 25_000_000
SEVEN = (ROOT / "docs/seven.png").read_bytes()
PHOTO = encode(Image.open(io.BytesIO(SEVEN)).convert("RGB"), "JPEG")


@pytest.fixture
def started(monkeypatch):
    children = []

    class Recorded(decoder_pool._Process):
        def __init__(self):
            super().__init__()
            children.append(self.child)

    monkeypatch.setattr(decoder_pool, "_Process", Recorded)
    return children


@pytest.fixture
def decoders(started):
    return DecoderPool(MAX_PIXELS)


def running(started):
    return [child for child in started if child.poll() is None]


def test_the_pool_decodes_like_the_function(decoders):
    tiny = encode(Image.open(io.BytesIO(SEVEN)).convert("L").resize((28, 28)), "JPEG")
    for picture, preprocess in ((SEVEN, "auto"), (PHOTO, "auto"), (tiny, "none"), (tiny, "mnist")):
        np.testing.assert_array_equal(decoders.decode(picture, preprocess), decode(picture, preprocess))


def test_only_small_pngs_are_decoded_in_the_worker(monkeypatch, decoders):
    monkeypatch.setattr(decoder_pool._Process, "call", lambda *_: (decoder_pool.REFUSED, b"in a process"))
    for picture in (SEVEN, png_small()):
        assert decoders.decode(picture).shape == (28, 28)
    many_bytes = with_chunks(SEVEN, png_chunk(b"teSt", bytes(2**14)))
    for picture in (many_bytes, encode(Image.new("L", (513, 512))), PHOTO):
        with pytest.raises(ImageError, match="in a process"):
            decoders.decode(picture)


def test_a_picture_that_is_too_large_is_refused_also_if_its_header_lies(decoders):
    with pytest.raises(ImageError, match=r"^expected a picture of at most 8,388,608 bytes, found 8,388,609$"):
        decoders.decode(PHOTO.ljust(2**23 + 1))
    large = encode(Image.new("L", (2_000, 2_000)))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0))
    with pytest.raises(ImageError, match=r"expected at most 262,144 pixels, found 2,000×2,000"):
        decoders.decode(large[:8] + header + large[8:])


TOO_COSTLY = {
    "time": lambda: jpeg_of_many_scans(1_600),
    "memory": lambda: png(12_000, 12_000, b"\0", colour=2),  # truncated, but memory for all pixels is allocated first
}


@pytest.mark.parametrize("resource", TOO_COSTLY)
def test_a_picture_that_takes_too_much_is_refused_and_the_next_is_decoded(resource):
    decoders = DecoderPool(max_pixels=200_000_000)
    with pytest.raises(ImageError, match=r"within 1 s of CPU time and 224 MiB of memory"):  # as in docs/operation.md
        decoders.decode(TOO_COSTLY[resource]())
    assert decoders.decode(PHOTO).shape == (28, 28)


@pytest.mark.parametrize(
    "kind", ["WEBP", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("PNG", "JPEG", "GIF"))]
)
def test_a_photo_of_12_million_pixels_is_decoded_whatever_was_decoded_before(decoders, kind):
    content = encode(Image.open(io.BytesIO(SEVEN)).convert("RGB").resize((4032, 3024)), kind, method=0)
    for _ in range(2 * PROCESSES):
        assert decoders.decode(content).shape == (28, 28)
    with pytest.raises(ImageError, match=r"^expected at most 13,000,000 pixels, found 5,000×5,000$"):
        decoders.decode(encode(Image.new("L", (5_000, 5_000)), "WEBP", method=0))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "1", "I;16"])
def test_a_picture_in_any_mode_may_have_13_million_pixels_and_no_more(decoders, mode):
    digit = Image.open(io.BytesIO(SEVEN)).convert("L").resize((3_600, 3_600))
    if mode == "RGBA":  # a phone's photo in RGBA is read without a copy, for which the memory limit has no room
        assert decoders.decode(encode(digit.convert(mode).resize((4_032, 3_024)), "WEBP", method=0)).max() == 255
    digit = Image.fromarray(np.asarray(digit, np.uint16) * 257) if mode == "I;16" else digit.convert(mode)
    assert decoders.decode(encode(digit, compress_level=1, transparency=0 if mode == "P" else None)).max() == 255
    larger = digit.resize((5_000, 2_700), Image.Resampling.NEAREST)
    with pytest.raises(ImageError, match=r"^expected at most 13,000,000 pixels, found 5,000×2,700$"):
        decoders.decode(encode(larger, compress_level=1))


def kill(started):
    for child in started:
        child.kill()
        child.wait(PATIENCE)


def test_a_process_that_is_killed_is_replaced(decoders, started):
    for _ in range(PROCESSES):
        decoders.decode(PHOTO)
    kill(started)
    for _ in range(PROCESSES):
        assert decoders.decode(PHOTO).shape == (28, 28)
    assert len(started) == 2 * PROCESSES == 2 * len(running(started))


def test_a_signal_to_the_process_group_does_not_end_a_decoding_process(decoders, started):
    """Ctrl-C and systemd send a signal to every process of the service; the worker must still finish its requests."""
    for count in (1, PROCESSES):  # number of processes; the first one has just started
        assert len(started) == count
        for child in started:
            child.send_signal(signal.SIGINT)
            child.send_signal(signal.SIGTERM)
        for _ in range(PROCESSES):
            decoders.decode(PHOTO)
        assert running(started) == started


def test_a_process_that_cannot_start_is_not_the_picture_s_fault(decoders, started, monkeypatch):
    def fail():
        raise OSError("no memory")

    kill(started)
    with monkeypatch.context() as patched:
        patched.setattr(decoder_pool, "_Process", fail)
        with pytest.raises(OSError, match="no memory"):
            decoders.decode(PHOTO)
    assert decoders.decode(PHOTO).shape == (28, 28)


def test_other_pictures_are_decoded_while_one_is_hostile(decoders):
    hostile = jpeg_of_many_scans(1_600)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(decoders.decode, hostile)
        read = 0
        while not running.done():
            decoders.decode(PHOTO)
            read += 1
    assert read >= 3
    assert isinstance(running.exception(), ImageError)


def test_the_number_of_processes_is_limited_and_they_exit_with_the_pool(started):
    decoders = DecoderPool(MAX_PIXELS)
    with ThreadPoolExecutor(16) as pool:
        assert len(list(pool.map(decoders.decode, [PHOTO] * 100))) == 100
    assert len(running(started)) == len(started) == 2  # docs/operation.md states this number
    del pool, decoders
    wait(lambda: not running(started), PATIENCE, lambda: "a process is still running")


def test_an_unexpected_exception_is_no_fault_of_the_picture(monkeypatch, decoders):
    monkeypatch.setattr(decoder_pool._Process, "call", lambda *_: (decoder_pool.FAILED, b"ZeroDivisionError"))
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        decoders.decode(PHOTO)
