"""Request parsing: decode the body of /predict from any accepted content type into images."""

import base64
from collections.abc import Sequence
from typing import Annotated, Any, get_args

import msgspec
import numpy as np
from flask import Request
from numpy.typing import NDArray
from werkzeug.exceptions import (
    BadRequest,
    ClientDisconnected,
    RequestEntityTooLarge,
    UnprocessableEntity,
    UnsupportedMediaType,
)

from serve.config import Config
from serve.decoder_pool import MAX_BYTES, DecoderPool
from serve.event_loop import chunks, yield_to_event_loop
from serve.pictures import FORMATS
from serve.preprocess import SIDE, ImageError, Preprocess, prepare

CHUNK = 100  # images that are prepared between two yields to the event loop: about 200 ms
EXTRA_COMMAS = 1_000  # commas that a JSON body may have besides those between the numbers of its images
PICTURES = tuple(f"image/{format.lower()}" for format in FORMATS)
ACCEPTED = ("application/json", "application/octet-stream", "multipart/form-data", *PICTURES)

# What msgspec raises: ValueError includes its own errors and invalid UTF-8; RecursionError is for deep nesting.
UNREADABLE = (ValueError, RecursionError)

Pixels = NDArray[np.uint8]  # [28, 28]
Source = bytes | Pixels  # an encoded picture, or pixels


def schema(**keywords: Any) -> msgspec.Meta:
    """Return JSON Schema keywords for openapi.json only: msgspec does not check them, as its errors would say less."""
    return msgspec.Meta(extra_json_schema=keywords)


def length(count: int) -> dict[str, int]:
    """Return the JSON Schema keywords of an array of `count` items."""
    return {"minItems": count, "maxItems": count}


Number = Annotated[int, msgspec.Meta(ge=0, le=255)] | Annotated[float, msgspec.Meta(ge=0, le=255)]
Pixel = Annotated[Number, schema(description="0 is black, 255 white; rounded.")]
ROWS = {"description": "28 rows of 28 pixels.", "items": {"type": "array", **length(SIDE)}, **length(SIDE)}
FLAT = {"description": "784 pixels, row by row.", "items": {"type": "number"}, **length(SIDE**2)}
Picture = Annotated[
    str,
    schema(
        description="A PNG, JPEG, WebP or GIF picture of at most 25 million pixels and 8 MiB, which decodes within a "
        "second of CPU time, as base64 or a data URL of base64.",
        minLength=1,
        pattern="^(data:[^,]*;base64,)?([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
    ),
]
JSONImage = Annotated[list[Pixel | list[Pixel]], schema(anyOf=[ROWS, FLAT])] | Picture


class PredictRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`image` or `images`."""

    image: JSONImage | msgspec.UnsetType = msgspec.UNSET
    images: Annotated[list[JSONImage], schema(minItems=1)] | msgspec.UnsetType = msgspec.UNSET


_body = msgspec.json.Decoder(PredictRequest)


def read_images(request: Request, config: Config, decoders: DecoderPool) -> NDArray[np.uint8]:
    """Return the images of `request`, uint8 [N, 28, 28], N ≥ 1, white ink on black, in the order sent.

    Raises werkzeug's exceptions: 400 for a malformed body, 413 for too many images or bytes, 415 for a content type
    that is not accepted, 422 for an invalid image, with its number.
    """
    preprocess: Preprocess = query_parameter(request, "preprocess", get_args(Preprocess), "auto")
    if request.content_encoding:
        raise UnsupportedMediaType(f"expected no Content-Encoding, found {request.content_encoding}")
    sources = _sources(request, config)
    check_count(len(sources), config)
    if isinstance(sources, np.ndarray) or all(isinstance(source, np.ndarray) for source in sources):
        return _prepare(np.asarray(sources), preprocess)
    return _decode(sources, preprocess, decoders)


def read_body(request: Request) -> bytes:
    """Return the whole body. Raises werkzeug's 413 if it is larger than MAX_BODY_BYTES, 400 if it ends early."""
    body: bytes
    size = request.content_length
    if size is None:  # chunked, or no body
        body = request.get_data(cache=False)
        request.stream.read(1)  # werkzeug truncates a chunked body at the limit; reading one byte more raises
        return body
    limit = request.max_content_length
    if limit is not None and size > limit:
        raise RequestEntityTooLarge
    # Not through werkzeug's stream: its layers take 3 % of a JSON request's CPU time.
    body = request.environ["wsgi.input"].read(size)
    if len(body) < size:
        raise ClientDisconnected
    return body


def check_count(count: int, config: Config) -> None:
    """Raise werkzeug's 413 if `count` images are too many for a request, 422 if there are none."""
    if count > config.max_batch:
        raise RequestEntityTooLarge(f"expected at most {config.max_batch} images, found {count}")
    if count == 0:
        raise UnprocessableEntity("expected at least one image, found none")


def check_numbers(json: bytes, images: int) -> None:
    """Raise werkzeug's 413 if a JSON text has more commas than `images` images need.

    This bounds memory and time before parsing: MAX_BODY_BYTES of JSON can hold millions of Python objects.
    """
    limit = images * SIDE**2 + EXTRA_COMMAS
    if json.count(b",") > limit:
        raise RequestEntityTooLarge(f"expected at most {limit:,} numbers in {images} image(s), found more")


def query_parameter(request: Request, name: str, values: tuple[str, ...], default: str) -> Any:
    """Return the query parameter `name`. Raises werkzeug's 400 if it has none of `values`."""
    # MultiDict.get raises and catches an error for a missing name.
    value = request.args[name] if name in request.args else default  # noqa: SIM401
    if value not in values:
        raise BadRequest(f"{name}: expected {' or '.join(values)}, found {value!r}")
    return value


def _sources(request: Request, config: Config) -> Sequence[Source] | NDArray[np.uint8]:
    """Return the encoded pictures or pixels in the body, by its content type."""
    if request.mimetype == "application/json":
        return _json_sources(read_body(request), config)
    if request.mimetype == "application/octet-stream":
        return _raw_pixels(read_body(request))
    if request.mimetype == "multipart/form-data":
        return _files(request)
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
            raise unprocessable(start + (error.index or 0), len(pixels), error) from error
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _decode(sources: Sequence[Source], preprocess: Preprocess, decoders: DecoderPool) -> NDArray[np.uint8]:
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
            raise unprocessable(i, len(sources), error) from error
    return images


def _raw_pixels(content: bytes) -> NDArray[np.uint8]:
    if len(content) % SIDE**2:
        raise UnprocessableEntity(f"expected N × {SIDE**2} bytes, one per pixel, found {len(content)} bytes")
    return np.frombuffer(content, np.uint8).reshape(-1, SIDE, SIDE)


def _files(request: Request) -> list[bytes]:
    """Return the files in the form field `image`, the only field, so that their order is the order sent."""
    if "boundary" not in request.mimetype_params:
        raise BadRequest("expected the boundary of the form's parts in Content-Type, found none")
    for name in (*request.files, *request.form):
        if name != "image" or name in request.form:
            kind = "text field" if name in request.form else "file field"
            raise BadRequest(f"expected files in the field 'image' only, found the {kind} {name!r}")
    # Not file.read(), which copies: every form that waits for a decoder would hold its files twice.
    return [file.stream.getvalue() for file in request.files.getlist("image")]  # type: ignore[attr-defined]  # BytesIO


def _json_sources(content: bytes, config: Config) -> list[Source]:
    check_numbers(content, config.max_batch)
    try:
        body = _body.decode(content)
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
    return sources


def _pixels(numbers: list[Any]) -> Pixels:
    """Return 28 rows of 28 numbers, or 784 numbers, as uint8 [28, 28]; fractions are rounded."""
    lengths = [len(row) if isinstance(row, list) else None for row in numbers]
    if lengths not in ([SIDE] * SIDE, [None] * SIDE**2):
        kinds = {"numbers" if length is None else f"rows of {length}" for length in lengths or [None]}
        found = f"{len(numbers)} {' or '.join(sorted(kinds))}"
        raise ImageError(f"expected {SIDE} rows of {SIDE} numbers or {SIDE**2} numbers, found {found}")
    rows = numbers if lengths[0] else [numbers]
    try:
        values = np.frombuffer(b"".join(map(bytes, rows)), np.uint8)  # saves 6 % of a request over np.array(rows)
    except TypeError:  # a float
        values = np.rint(rows).astype(np.uint8)
    return values.reshape(SIDE, SIDE)


def _base64(text: str) -> bytes:
    """Return the bytes of a base64 text, which may be wrapped in lines and have a data URL's prefix (RFC 2397)."""
    head, comma, data = text.partition(",")
    if comma and not (head.startswith("data:") and head.endswith(";base64")):
        raise ImageError("expected base64 or a data URL, data:…;base64,…, found neither")
    encoded = (data if comma else text).encode().translate(None, b" \t\r\n")
    if len(encoded) > MAX_BYTES * 4 // 3 + 4:
        raise ImageError(f"expected a picture of at most {MAX_BYTES:,} bytes, found a larger one")
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:  # includes binascii.Error
        raise ImageError(f"expected base64, found: {error}") from error


def unprocessable(index: int, count: int, error: ImageError) -> UnprocessableEntity:
    """Return the 422 error for image `index`, from 0, of `count`; its text counts from 1."""
    return UnprocessableEntity(f"image {index + 1} of {count}: {error}")
