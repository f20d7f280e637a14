"""Get the images of a request to /predict from a body of any accepted content type."""

import base64
from codecs import BOM_UTF8
from contextlib import suppress
from typing import Any, get_args

import msgspec
import numpy as np
from flask import Request
from numpy.typing import NDArray
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnprocessableEntity, UnsupportedMediaType

from serve.config import Config
from serve.pictures.decode import FORMATS, format_of
from serve.pictures.decoder_pool import MAX_BYTES, DecoderPool
from serve.pictures.preprocess import SIDE, ImageError, Preprocess, prepare
from serve.routes.body import CURL, read_body, read_form
from serve.server.event_loop import yield_to_event_loop

YIELD_EVERY = 10  # after so many images sent as pixels, yield to the event loop: ten images take up to 20 ms
EXTRA_COMMAS = 1_000  # a JSON body may have this many more commas than MAX_BATCH images need
OTHER_FIELDS = 100  # a form may have this many more parts than MAX_BATCH
PICTURES = tuple(f"image/{format.lower()}" for format in FORMATS)
ACCEPTED = ("application/json", "application/octet-stream", "multipart/form-data", *PICTURES)
BASE64URL = bytes.maketrans(b"-_", b"+/")

# What msgspec raises: subclasses of ValueError for invalid JSON or invalid UTF-8, RecursionError for deep nesting.
UNREADABLE = (ValueError, RecursionError)

Pixels = NDArray[np.uint8]  # [28, 28]
Source = bytes | Pixels  # an encoded picture, or pixels

Number = int | float
JSONImage = list[Number | list[Number | list[Number | list[Number]]]] | str  # numbers, or a picture as base64


class PredictRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A JSON body, which has either `image` or `images`."""

    image: JSONImage | msgspec.UnsetType = msgspec.UNSET
    images: list[JSONImage] | msgspec.UnsetType = msgspec.UNSET


_body = msgspec.json.Decoder(PredictRequest)


def read_images(request: Request, config: Config, decoders: DecoderPool) -> NDArray[np.uint8]:
    """Return the images of `request`, uint8 [N, 28, 28], N ≥ 1, white ink on black, in the order sent.

    Raises werkzeug's exceptions: 400 for a malformed body or query, 413 for too many images or bytes, 415 for a content
    type or encoding that is not accepted, 422 if there is no image or if an image is invalid (with the image's number).
    """
    preprocess: Preprocess = query_parameter(request, "preprocess", get_args(Preprocess), "auto")
    sources = _sources(request, config)
    count = len(sources)
    check_count(count, config)
    images = np.empty((count, SIDE, SIDE), np.uint8)
    for index, source in enumerate(sources):
        if index and (isinstance(source, bytes) or index % YIELD_EVERY == 0):
            yield_to_event_loop()
        try:
            if isinstance(source, bytes):
                images[index] = decoders.decode(source, preprocess)
            else:
                images[index] = prepare(source, preprocess)
        except ImageError as error:
            raise unprocessable(index, count, error) from error
    return images


def check_count(count: int, config: Config) -> None:
    """Raise werkzeug's 413 if `count` is greater than `config.max_batch`, and werkzeug's 422 if `count` is 0."""
    if count > config.max_batch:
        raise RequestEntityTooLarge(f"expected at most {config.max_batch} images, found {count}")
    if count == 0:
        raise UnprocessableEntity("expected at least one image, found none")


def check_numbers(json: bytes, images: int) -> None:
    """Raise werkzeug's 413 if a JSON text has more commas than `images` images need.

    This limits the memory and time of parsing: a JSON text of MAX_BODY_BYTES can contain millions of objects.
    """
    limit = images * SIDE**2 + EXTRA_COMMAS
    if json.count(b",") > limit:
        raise RequestEntityTooLarge(f"expected at most {limit:,} numbers, enough for {images:,} images, found more")


def query_parameter(request: Request, name: str, values: tuple[str, ...], default: str) -> Any:
    """Return the query parameter `name`, or `default`. Raises werkzeug's 400 if the value is not in `values`."""
    value = request.args.get(name, default)
    if value not in values:
        raise BadRequest(f"{name}: expected {' or '.join(values)}, found {value!r}")
    return value


def _sources(request: Request, config: Config) -> list[Source]:
    """Return the images in the body. Content-Type and the first bytes tell whether they are pictures or pixels."""
    if request.mimetype == "multipart/form-data":
        return _form(request)
    body = read_body(request)
    if request.mimetype == "application/json":
        return _json_sources(body, config)
    if request.mimetype in PICTURES or format_of(body) in FORMATS:
        return [body]
    if request.mimetype == "application/octet-stream":
        return _raw_pixels(body)
    if body[:1_000].removeprefix(BOM_UTF8).lstrip()[:1] == b"{":
        return _json_sources(body, config)
    if picture := _from_text(body):
        return [picture]
    expected = f"a Content-Type of {', '.join(ACCEPTED)}, or the bytes of a picture"
    found = " with ".join(filter(None, (request.mimetype or "none", format_of(body))))
    raise UnsupportedMediaType(f"expected {expected}, found {found}")


def _raw_pixels(content: bytes) -> list[Source]:
    if len(content) % SIDE**2:
        raise UnprocessableEntity(f"expected N × {SIDE**2} bytes, one (uint8) per pixel, found {len(content)} bytes")
    return list(np.frombuffer(content, np.uint8).reshape(-1, SIDE, SIDE))


def _form(request: Request) -> list[Source]:
    """Return the pictures of a form, in the order sent: files in any field, and text fields that contain a picture."""
    pictures: list[Source] = []
    for content, is_file in read_form(request):
        picture = content if is_file or format_of(content) in FORMATS else _from_text(content)
        if picture is not None:
            pictures.append(picture)
    if not pictures:
        raise BadRequest(f"expected a picture in the form, as {CURL} sends it, found none")
    return pictures


def _json_sources(content: bytes, config: Config) -> list[Source]:
    check_numbers(content, config.max_batch)
    try:
        body = _body.decode(content.removeprefix(BOM_UTF8))
    except UNREADABLE as error:
        raise BadRequest(f'expected JSON, {{"image": …}} or {{"images": [ … ]}}, found: {error}') from error
    if (body.image is msgspec.UNSET) == (body.images is msgspec.UNSET):
        found = "neither" if body.image is msgspec.UNSET else "both"
        raise BadRequest(f'expected either {{"image": …}} or {{"images": [ … ]}}, found {found}')
    items: list[Any] = [body.image] if isinstance(body.images, msgspec.UnsetType) else body.images
    check_count(len(items), config)
    sources: list[Source] = []
    for index, item in enumerate(items):
        try:
            sources.append(_base64(item) if isinstance(item, str) else _pixels(item))
        except ImageError as error:
            raise unprocessable(index, len(items), error) from error
        except (ValueError, OverflowError) as error:  # OverflowError: a number with hundreds of digits
            raise BadRequest(f"image {index + 1} of {len(items)}: {error}") from error
    return sources


def _pixels(numbers: list[Any]) -> Pixels:
    """Convert and round 28 rows of 28 numbers, or 784 numbers, to uint8 [28, 28]. Axes of length 1 are removed.

    If no number exceeds 1, the numbers mean 0 (black) to 1 (white). With 0 to 255, the image would be nearly black.
    Raises ImageError for another shape, ValueError or OverflowError for a number out of range.
    """
    with suppress(TypeError, ValueError):  # a fast path for integers from 0 to 255: 6 % less time per request
        rows = numbers if len(numbers) == SIDE else [numbers]
        if {*map(len, rows)} == {SIDE**2 // len(rows)}:
            pixels = b"".join(map(bytes, rows))
            if pixels.strip(b"\0\1"):
                return np.frombuffer(pixels, np.uint8).reshape(SIDE, SIDE)
    try:
        values = np.array(numbers, np.float64)
        found = f"{'×'.join(map(str, values.shape))} numbers"
    except ValueError:
        values, found = np.empty(0), "rows of different lengths"
    if values.squeeze().shape not in ((SIDE, SIDE), (SIDE**2,)):
        raise ImageError(f"expected {SIDE} rows of {SIDE} numbers or {SIDE**2} numbers, found {found}")
    low, high = values.min(), values.max()
    if low < 0 or high > 255:
        raise ValueError(f"expected numbers from 0 to 255, or from 0 to 1, found {low if low < 0 else high:g}")
    if high <= 1:
        values *= 255
    return np.rint(values).astype(np.uint8).reshape(SIDE, SIDE)


def _base64(text: str | bytes) -> bytes:
    """Decode base64 or base64url. The text may have a data URL's prefix (RFC 2397) and white space."""
    head, comma, data = (text.encode() if isinstance(text, str) else text).partition(b",")
    if comma and not (head.startswith(b"data:") and head.endswith(b";base64")):
        raise ImageError("expected base64 or a data URL, data:…;base64,…, found neither")
    encoded = (data if comma else head).translate(BASE64URL, b" \t\r\n").rstrip(b"=")
    if len(encoded) > MAX_BYTES * 4 // 3 + 4:
        raise ImageError(f"expected a picture of at most {MAX_BYTES:,} bytes, found a larger one")
    try:
        return base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    except ValueError as error:  # binascii.Error is a ValueError
        raise ImageError(f"expected base64, found invalid base64: {error}") from error


def _from_text(text: bytes) -> bytes | None:
    """Return the picture that `text` contains as base64, or the content of a base64 data URL; otherwise None."""
    with suppress(ImageError):
        content = _base64(text)
        if text.startswith(b"data:") or format_of(content):
            return content
    return None


def unprocessable(index: int, count: int, error: ImageError) -> UnprocessableEntity:
    """Return the 422 error for image `index` of `count`. `index` starts at 0, the number in the message at 1."""
    return UnprocessableEntity(f"image {index + 1} of {count}: {error}")
