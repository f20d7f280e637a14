"""Request parsing: decode the body of /predict from any accepted content type into images."""

import base64
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
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
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from serve.config import Config
from serve.decoder_pool import MAX_BYTES, DecoderPool
from serve.event_loop import chunks, yield_to_event_loop
from serve.pictures import FORMATS, format_of
from serve.preprocess import SIDE, ImageError, Preprocess, prepare

CHUNK = 100  # images that are prepared between two yields to the event loop: about 200 ms
EXTRA_COMMAS = 1_000  # commas that a JSON body may have besides those between the numbers of its images
PIECE = 2**16  # bytes of a body that are read, or unpacked, between two yields to the event loop
OTHER_FIELDS = 100  # parts that a form may have besides its images
PICTURES = tuple(f"image/{format.lower()}" for format in FORMATS)
ACCEPTED = ("application/json", "application/octet-stream", "multipart/form-data", *PICTURES)
CURL = "curl -F image=@7.png"
BASE64URL = bytes.maketrans(b"-_", b"+/")

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


PIXEL = {"type": "number", "minimum": 0, "maximum": 255}
ROWS = {"description": "28 rows of 28.", "items": {"type": "array", "items": PIXEL, **length(SIDE)}, **length(SIDE)}
FLAT = {"description": "784, row by row.", "items": PIXEL, **length(SIDE**2)}
ONES = {"description": "The same with axes of length 1.", "items": {"type": "array"}}
NUMBERS = "Pixels as numbers: 0 is black, 255 white; rounded. If none is above 1, 1 is white."
Number = int | float
Nested = list[Number | list[Number | list[Number | list[Number]]]]
Picture = Annotated[
    str,
    schema(
        description="A PNG, JPEG, WebP or GIF picture of at most 25 million pixels (WebP: 13 million) and 8 MiB, which "
        "decodes within a second of CPU time, as base64 or base64url, with or without padding, or a data URL of it.",
        minLength=1,
        pattern="^(data:[^,]*;base64,)?[A-Za-z0-9+/_-]*={0,2}$",
    ),
]
JSONImage = Annotated[Nested, schema(description=NUMBERS, anyOf=[ROWS, FLAT, ONES])] | Picture


class PredictRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`image` or `images`."""

    image: JSONImage | msgspec.UnsetType = msgspec.UNSET
    images: Annotated[list[JSONImage], schema(minItems=1)] | msgspec.UnsetType = msgspec.UNSET


_body = msgspec.json.Decoder(PredictRequest)


def read_images(request: Request, config: Config, decoders: DecoderPool) -> NDArray[np.uint8]:
    """Return the images of `request`, uint8 [N, 28, 28], N ≥ 1, white ink on black, in the order sent.

    Raises werkzeug's exceptions: 400 for a malformed body, 413 for too many images or bytes, 415 for a content type
    or encoding that is not accepted, 422 for an invalid image, with its number.
    """
    preprocess: Preprocess = query_parameter(request, "preprocess", get_args(Preprocess), "auto")
    sources = _sources(request, config)
    check_count(len(sources), config)
    if isinstance(sources, np.ndarray) or all(isinstance(source, np.ndarray) for source in sources):
        return _prepare(np.asarray(sources), preprocess)
    return _decode(sources, preprocess, decoders)


def read_body(request: Request) -> bytes:
    """Return the whole body, unpacked. Raises werkzeug's 413 if it exceeds MAX_BODY_BYTES, 400 if it ends early."""
    body: bytes
    size, limit = request.content_length, request.max_content_length
    if size is None or "HTTP_CONTENT_ENCODING" in request.environ:
        return b"".join(_pieces(request))
    if limit is not None and size > limit:
        raise RequestEntityTooLarge
    # Not through werkzeug's stream: its layers take 3 % of a JSON request's CPU time.
    body = request.environ["wsgi.input"].read(size)
    if len(body) < size:
        raise ClientDisconnected
    return body


def _pieces(request: Request) -> Iterator[bytes]:
    """Yield the body without its Content-Encoding. Raises werkzeug's 400, 413 as `read_body`, 415 for another one."""
    pieces = iter(partial(request.stream.read, PIECE), b"")
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        yield from pieces
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UnsupportedMediaType(f"expected a Content-Encoding of gzip, deflate or identity, found {encoding}")
    first = next(pieces, b"")
    # `deflate` has zlib's header (RFC 9110), whose first four bits are 8; some clients leave the header out.
    bits = 31 if "gzip" in encoding else 15 if first and first[0] % 16 == 8 else -15
    unpacker, size = zlib.decompressobj(bits), 0
    try:
        for piece in chain([first], pieces):
            while piece:
                if unpacker.eof:  # gzip may consist of several members
                    unpacker = zlib.decompressobj(bits)
                data = unpacker.decompress(piece, PIECE)
                piece = unpacker.unconsumed_tail or unpacker.unused_data
                size += len(data)
                if size > (request.max_content_length or size):
                    raise RequestEntityTooLarge
                yield data
                yield_to_event_loop()
        yield unpacker.flush()
    except zlib.error as error:
        raise BadRequest(f"expected a body in {encoding}, found: {error}") from error
    if not unpacker.eof:
        raise BadRequest(f"expected a whole body in {encoding}, found only its beginning")


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
    """Return the encoded pictures or pixels in the body. Its bytes say what it is, unless it is JSON or a form."""
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
    found = " with ".join(filter(None, (request.mimetype or "none", format_of(body))))
    raise UnsupportedMediaType(
        f"expected a Content-Type of {', '.join(ACCEPTED)}, or any with a picture, found {found}"
    )


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
        raise UnprocessableEntity(f"expected N × {SIDE**2} bytes, one (uint8) per pixel, found {len(content)} bytes")
    return np.frombuffer(content, np.uint8).reshape(-1, SIDE, SIDE)


def _form(request: Request) -> list[bytes]:
    """Return the pictures of a form, in the order sent: its files, whatever their fields, and texts of base64."""
    if not (boundary := request.mimetype_params.get("boundary")):
        raise BadRequest("expected the boundary of the form's parts in Content-Type, found none")
    # Not werkzeug's own parser: it loses the order of files and texts, and the bytes of a file without a name.
    decoder = MultipartDecoder(boundary.encode(), request.max_form_memory_size, max_parts=request.max_form_parts)
    pictures: list[bytes] = []
    parts: list[bytes] = []
    try:
        for piece in chain(_pieces(request), [None]):
            decoder.receive_data(piece)
            while not isinstance(event := decoder.next_event(), NeedData | Epilogue):
                if isinstance(event, Field | File):
                    kind = event.headers.get("Content-Type", "")
                    parts, is_file = [], bool(getattr(event, "filename", "")) or kind.startswith("image/")
                elif isinstance(event, Data):
                    parts.append(event.data)
                    if not event.more_data:
                        content = b"".join(parts)
                        picture = content if is_file or format_of(content) in FORMATS else _from_text(content)
                        if picture is not None:
                            pictures.append(picture)
    except ValueError as error:
        raise BadRequest(f"expected a form as {CURL} sends it, found a malformed one") from error
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
        except (ValueError, OverflowError) as error:  # the latter for an integer of hundreds of digits
            raise BadRequest(f"image {index + 1} of {len(items)}: {error}") from error
    return sources


def _pixels(numbers: list[Any]) -> Pixels:
    """Return 28 rows of 28 numbers, or 784, as uint8 [28, 28]. Axes of length 1 are dropped, fractions are rounded.

    Numbers of at most 1 are read as 0 to 1: an image of 0 to 255 with a maximum of 1 would show nothing.
    Raises ImageError for another shape, ValueError or OverflowError for a number out of range.
    """
    with suppress(TypeError, ValueError):  # integers from 0 to 255: saves 6 % of a request over np.array
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
    """Return the bytes of a text in base64 or base64url, which may have a data URL's prefix (RFC 2397) and lines."""
    head, comma, data = (text.encode() if isinstance(text, str) else text).partition(b",")
    if comma and not (head.startswith(b"data:") and head.endswith(b";base64")):
        raise ImageError("expected base64 or a data URL, data:…;base64,…, found neither")
    encoded = (data if comma else head).translate(BASE64URL, b" \t\r\n").rstrip(b"=")
    if len(encoded) > MAX_BYTES * 4 // 3 + 4:
        raise ImageError(f"expected a picture of at most {MAX_BYTES:,} bytes, found a larger one")
    try:
        return base64.b64decode(encoded + b"=" * (-len(encoded) % 4), validate=True)
    except ValueError as error:  # includes binascii.Error
        raise ImageError(f"expected base64, found: {error}") from error


def _from_text(text: bytes) -> bytes | None:
    """Return the picture that `text` holds as base64 or as a data URL, or None."""
    with suppress(ImageError):
        content = _base64(text)
        if text.startswith(b"data:") or format_of(content):
            return content
    return None


def unprocessable(index: int, count: int, error: ImageError) -> UnprocessableEntity:
    """Return the 422 error for image `index`, from 0, of `count`; its text counts from 1."""
    return UnprocessableEntity(f"image {index + 1} of {count}: {error}")
