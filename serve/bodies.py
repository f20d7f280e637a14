"""What a request's body holds, in whichever form people have a digit, becomes images: /predict's decoding step."""

import base64
from typing import Annotated, get_args

import msgspec
import numpy as np
from flask import Request
from numpy.typing import NDArray
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnprocessableEntity, UnsupportedMediaType

from serve.config import Config
from serve.decoder import Decoders
from serve.event_loop import chunks, yield_to_event_loop
from serve.images import FORMATS, MAX_BYTES
from serve.preprocess import SIDE, ImageError, Preprocess, prepare

CHUNK = 100  # images prepared at a time: at most some 200 ms until the event loop goes on
ROOM = 1_000  # more commas than the images have: for other fields, and so that an image a little too large is named
PICTURES = tuple(f"image/{format.lower()}" for format in FORMATS)
ACCEPTED = ("application/json", "application/octet-stream", "multipart/form-data", *PICTURES)

# What msgspec raises: its own errors and that of bytes that are not UTF-8 are the first, that of depth is the second.
UNREADABLE = (ValueError, RecursionError)

Pixels = NDArray[np.uint8]  # [28, 28]
Source = bytes | Pixels  # an encoded picture, or the pixels themselves
Number = Annotated[int, msgspec.Meta(ge=0, le=255)] | Annotated[float, msgspec.Meta(ge=0, le=255)]


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """A JSON body: one image or many."""

    image: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    images: list[msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET


_body = msgspec.json.Decoder(Body)
_text = msgspec.json.Decoder(str)
_flat = msgspec.json.Decoder(list[Number])
_rows = msgspec.json.Decoder(list[list[Number]])


def read_images(request: Request, config: Config, decoders: Decoders) -> NDArray[np.uint8]:
    """Return the images of `request`, uint8 [N, 28, 28], N ≥ 1, white ink on black, in the order sent.

    Raises werkzeug's exceptions: 400 for a body that is not of its form, 413 for too many images, 415 for a content
    type that is not taken, 422 for what cannot be an image, naming which.
    """
    preprocess = _preprocess(request)
    if request.content_encoding:
        raise UnsupportedMediaType(f"expected no Content-Encoding, found {request.content_encoding}")
    if request.mimetype == "application/octet-stream":
        pixels = _pixels(read_body(request))
        check_count(len(pixels), config)
        return _prepare(pixels, preprocess)
    sources = _sources(request, config)
    if all(isinstance(source, np.ndarray) for source in sources):
        return _prepare(np.array(sources), preprocess)
    return _decode(sources, preprocess, decoders)


def read_body(request: Request) -> bytes:
    """Return the whole body. Raises werkzeug's 413 where it is larger than the service takes."""
    content = request.get_data(cache=False)
    if request.content_length is None:
        request.stream.read(1)  # werkzeug ends a chunked body at the limit without a word: one byte more raises
    return content


def check_count(count: int, config: Config) -> None:
    """Raise werkzeug's 413 or 422 where `count` images are more, or fewer, than a request may have."""
    if count > config.max_batch:
        raise RequestEntityTooLarge(f"expected at most {config.max_batch} images, found {count}")
    if count == 0:
        raise UnprocessableEntity("expected at least one image, found none")


def check_numbers(json: bytes, images: int) -> None:
    """Raise werkzeug's 413 where a JSON text has more commas than this many images have numbers.

    So memory and time are bounded before the text becomes objects, millions of which would fit into MAX_BODY_BYTES.
    """
    limit = images * SIDE**2 + ROOM
    if json.count(b",") > limit:
        raise RequestEntityTooLarge(f"expected at most {limit:,} numbers in {images} image(s), found more")


def _preprocess(request: Request) -> Preprocess:
    value = request.args.get("preprocess", "auto")
    if value not in get_args(Preprocess):
        raise BadRequest(f"preprocess: expected one of {', '.join(get_args(Preprocess))}, found {value!r}")
    return value  # type: ignore[return-value]  # one of its values, just checked


def _sources(request: Request, config: Config) -> list[Source]:
    if request.mimetype == "application/json":
        body = read_body(request)
        check_numbers(body, config.max_batch)
        items = _items(body)
        check_count(len(items), config)
        return [_json_image(i, len(items), item) for i, item in enumerate(items)]
    if request.mimetype == "multipart/form-data":
        files = _files(request)
        check_count(len(files), config)
        return files
    if request.mimetype in PICTURES:
        return [read_body(request)]
    found = request.mimetype or "none"
    raise UnsupportedMediaType(f"expected a Content-Type of {', '.join(ACCEPTED)}, found {found}")


def _prepare(pixels: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    parts = []
    for start, chunk in chunks(pixels, CHUNK):
        try:
            parts.append(prepare(chunk, preprocess))
        except ImageError as error:
            raise _unprocessable(start + (error.index or 0), len(pixels), str(error)) from error
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _decode(sources: list[Source], preprocess: Preprocess, decoders: Decoders) -> NDArray[np.uint8]:
    images = np.empty((len(sources), SIDE, SIDE), np.uint8)
    for i, source in enumerate(sources):
        if i:
            yield_to_event_loop()
        try:
            images[i] = (
                decoders.decode(source, preprocess)
                if isinstance(source, bytes)
                else prepare(source[np.newaxis], preprocess)[0]
            )
        except ImageError as error:
            raise _unprocessable(i, len(sources), str(error)) from error
    return images


def _pixels(content: bytes) -> NDArray[np.uint8]:
    if len(content) % SIDE**2:
        raise UnprocessableEntity(f"expected N × {SIDE**2} bytes, one a pixel, found {len(content)} bytes")
    return np.frombuffer(content, np.uint8).reshape(-1, SIDE, SIDE)


def _files(request: Request) -> list[Source]:
    """Return the files of the field `image`, the only one: so their order is the order sent."""
    for name in (*request.files, *request.form):
        if name != "image" or name in request.form:
            raise BadRequest(f"expected files in the field 'image' alone, found the {_kind(request, name)} {name!r}")
    return [file.read() for file in request.files.getlist("image")]


def _kind(request: Request, name: str) -> str:
    return "text field" if name in request.form else "file field"


def _items(content: bytes) -> list[msgspec.Raw]:
    """Return the images of a JSON body, each still JSON."""
    try:
        body = _body.decode(content)
    except UNREADABLE as error:
        raise BadRequest(f'expected JSON, {{"image": …}} or {{"images": [ … ]}}, found: {error}') from error
    if isinstance(body.image, msgspec.Raw) and body.images is msgspec.UNSET:
        return [body.image]
    if isinstance(body.images, list) and body.image is msgspec.UNSET:
        return body.images
    found = "neither" if body.image is msgspec.UNSET else "both"
    raise BadRequest(f'expected either {{"image": …}} or {{"images": [ … ]}}, found {found}')


def _json_image(index: int, count: int, item: msgspec.Raw) -> Source:
    """Return 28 rows of 28 numbers or 784 numbers as pixels, a base64 or data-URL text as the picture's bytes."""
    json = bytes(item)
    check_numbers(json, 1)
    try:
        if json.startswith(b'"'):
            return _base64(index, count, _text.decode(json))
        if not json.startswith(b"["):
            raise msgspec.ValidationError("a value of another type")
        if json[1:].lstrip().startswith(b"["):
            rows = _rows.decode(json)
            sides = {len(row) for row in rows}
            if len(rows) != SIDE or sides != {SIDE}:
                found = f"{len(rows)} rows of {' or '.join(map(str, sorted(sides)))}"
                raise _unprocessable(index, count, f"expected {SIDE} rows of {SIDE} numbers, found {found}")
            return _grey(rows)
        numbers = _flat.decode(json)
    except UNREADABLE as error:
        expected = "28 rows of 28 numbers 0–255, 784 such numbers, or a picture as base64"
        raise BadRequest(f"{_name(index, count)}: expected {expected}, found: {error}") from error
    if len(numbers) != SIDE**2:
        raise _unprocessable(index, count, f"expected {SIDE**2} numbers, found {len(numbers)}")
    return _grey([numbers])


def _grey(rows: list[list[float]]) -> Pixels:
    try:
        values = np.frombuffer(b"".join(map(bytes, rows)), np.uint8)  # type: ignore[arg-type]  # or it raises
    except TypeError:  # not whole numbers all
        values = np.rint(rows).astype(np.uint8)
    return values.reshape(SIDE, SIDE)


def _base64(index: int, count: int, text: str) -> bytes:
    """Return the bytes of a base64 text, wrapped in lines or not, with or without a data URL's head (RFC 2397)."""
    head, comma, data = text.partition(",")
    if comma and not (head.startswith("data:") and head.endswith(";base64")):
        raise _unprocessable(index, count, "expected base64 or a data URL, data:…;base64,…, found neither")
    encoded = (data if comma else text).encode().translate(None, b" \t\r\n")
    if len(encoded) > MAX_BYTES * 4 // 3 + 4:
        raise _unprocessable(index, count, f"expected a picture of at most {MAX_BYTES:,} bytes, found a larger one")
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:  # binascii.Error is one
        raise _unprocessable(index, count, f"expected base64, found: {error}") from error


def _unprocessable(index: int, count: int, reason: str) -> UnprocessableEntity:
    return UnprocessableEntity(f"{_name(index, count)}: {reason}")


def _name(index: int, count: int) -> str:
    return f"image {index + 1} of {count}"
