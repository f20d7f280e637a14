"""The body of a request: read, unpacked, split into the parts of a form, each within its limits."""

import zlib
from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

from flask import Request
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from serve.server.event_loop import yield_to_event_loop

PIECE = 2**16  # bytes of a body that are read, or unpacked, between two yields to the event loop
CURL = "curl -F image=@7.png"


class Part(NamedTuple):
    """A part of a form."""

    content: bytes
    is_file: bool  # it has a file name or a picture's content type


def read_body(request: Request) -> bytes:
    """Return the whole body, unpacked. Raises werkzeug's 413 if it exceeds MAX_BODY_BYTES, 400 if it ends early."""
    return b"".join(_unpacked(request))


def read_form(request: Request) -> Iterator[Part]:
    """Yield the parts of a form in the order sent. Raises as read_body, and 413 for too many or too large parts."""
    if "boundary" not in request.mimetype_params:
        raise BadRequest("expected the boundary of the form's parts in Content-Type, found none")
    # Not werkzeug's own parser: it loses the order of files and texts, and the bytes of a file without a name.
    boundary, size, count = request.mimetype_params["boundary"], request.max_form_memory_size, request.max_form_parts
    decoder = MultipartDecoder(boundary.encode(), size, max_parts=count)
    content: list[bytes] = []
    is_file = False
    for piece in chain(_unpacked(request), [None]):
        try:
            decoder.receive_data(piece)
            while not isinstance(event := decoder.next_event(), NeedData | Epilogue):
                if isinstance(event, Field | File):
                    content, kind = [], event.headers.get("Content-Type", "")
                    is_file = bool(getattr(event, "filename", "")) or kind.startswith("image/")
                elif isinstance(event, Data):
                    content.append(event.data)
                    if not event.more_data:
                        yield Part(b"".join(content), is_file)
        except RequestEntityTooLarge as error:
            expected = f"expected a form of at most {count} parts with at most {size} bytes of headers each"
            raise RequestEntityTooLarge(f"{expected}, found a larger one") from error
        except ValueError as error:
            raise BadRequest(f"expected a form as {CURL} sends it, found a malformed one") from error


def _pieces(request: Request) -> Iterator[bytes]:
    """Yield the body as sent."""
    # Not through werkzeug's stream: its layers take 3 % of a JSON request's CPU time.
    stream, left = request.environ["wsgi.input"], request.content_length  # None: chunked, or no body
    _check_size(request, left or 0)
    try:
        while left != 0 and (piece := stream.read(min(PIECE, left or PIECE))):
            yield piece
            left = left and left - len(piece)
    except OSError:
        left = left or 1  # a chunked body ended early
    if left:
        raise BadRequest("expected the whole body, found the end of the connection")


def _unpacked(request: Request) -> Iterator[bytes]:
    """Yield the body without its Content-Encoding. Its size is limited both as sent and unpacked."""
    encoding, pieces = request.headers.get("Content-Encoding", "").strip().lower(), _limited(request, _pieces(request))
    if encoding in ("gzip", "x-gzip", "deflate"):
        return _limited(request, _inflated(pieces, encoding))
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(f"expected a Content-Encoding of gzip, deflate or identity, found {encoding}")
    return pieces


def _limited(request: Request, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield `pieces`. Raises werkzeug's 413 as soon as they have more than MAX_BODY_BYTES."""
    size = 0
    for piece in pieces:
        size += len(piece)
        _check_size(request, size)
        yield piece


def _inflated(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    """Unpack `pieces` to pieces of at most PIECE bytes; yield to the event loop after each."""
    first = next(pieces, b"")
    # `deflate` has zlib's header (RFC 9110), whose first four bits are 8; some clients leave the header out.
    bits = 31 if "gzip" in encoding else 15 if first and first[0] & 15 == 8 else -15
    unpacker = zlib.decompressobj(bits)
    try:
        for piece in chain([first], pieces):
            while piece:
                if unpacker.eof:  # gzip may consist of several members
                    unpacker = zlib.decompressobj(bits)
                yield unpacker.decompress(piece, PIECE)
                yield_to_event_loop()
                piece = unpacker.unconsumed_tail or unpacker.unused_data
        yield unpacker.flush()
    except zlib.error as error:
        raise BadRequest(f"expected a body in {encoding}, found: {error}") from error
    if not unpacker.eof:
        raise BadRequest(f"expected a whole body in {encoding}, found only its beginning")


def _check_size(request: Request, size: int) -> None:
    limit = request.max_content_length
    if limit is not None and size > limit:
        raise RequestEntityTooLarge(f"expected a body of at most {limit} bytes, found a larger one")
