"""Read the body of a request, decompress the body, and split a form into its parts. Every step limits the size."""

import zlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain

from flask import Request
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder, NeedData

from serve.server.event_loop import yield_to_event_loop

PIECE = 2**16  # bytes of a body that are parsed or decompressed between two yields to the event loop
CURL = "curl -F image=@7.png"


def read_body(request: Request) -> bytes:
    """Return the decompressed body. Raises werkzeug's 413 (too large), 415 (unknown encoding) or 400 (damaged)."""
    encoding, limit = request.headers.get("Content-Encoding", "").strip().lower(), request.max_content_length or 0
    body = _read(request, limit)
    if encoding in ("gzip", "x-gzip", "deflate"):
        return _unpacked(body, encoding, limit)
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(f"expected a Content-Encoding of gzip, deflate or identity, found {encoding}")
    return body


def read_form(request: Request) -> Iterator[tuple[bytes, bool]]:
    """Yield the content of each part of a form, and whether the part has a file name or a picture's content type.

    Raises the errors of read_body, 400 for a malformed form, and 413 for too many parts or too large headers of a part.
    """
    if "boundary" not in request.mimetype_params:
        raise BadRequest("expected the boundary of the form's parts in Content-Type, found none")
    # Request.files and .form are not used: they lose the order of the parts, and the bytes of a file without a name.
    boundary, size, count = request.mimetype_params["boundary"], request.max_form_memory_size, request.max_form_parts
    decoder = MultipartDecoder(boundary.encode(), size, max_parts=count)
    content: list[bytes] = []
    is_file = False
    for piece in chain(_pieces(read_body(request)), [None]):
        try:
            decoder.receive_data(piece)
            while not isinstance(event := decoder.next_event(), NeedData | Epilogue):
                if isinstance(event, Field | File):
                    content, kind = [], event.headers.get("Content-Type", "")
                    is_file = bool(getattr(event, "filename", "")) or kind.startswith("image/")
                elif isinstance(event, Data):
                    content.append(event.data)
                    if not event.more_data:
                        yield b"".join(content), is_file
        except RequestEntityTooLarge as error:
            expected = f"expected a form of at most {count} parts with at most {size} bytes of headers each"
            raise RequestEntityTooLarge(f"{expected}, found a larger one") from error
        except ValueError as error:
            raise BadRequest(f"expected a form as {CURL} sends it, found a malformed one") from error


def _read(request: Request, limit: int) -> bytes:
    """Return the body, which may be compressed. Raises 413 if it has more than `limit` bytes, 400 if incomplete."""
    size = request.content_length  # None: the body is chunked, or there is no body
    if (size or 0) > limit:
        raise _too_large(limit)
    body: bytes | None = None
    with suppress(OSError):  # OSError: a chunked body ended early
        # werkzeug's stream is not used: its layers take 3 % of a JSON request's CPU time.
        body = request.environ["wsgi.input"].read(limit + 1 if size is None else size)
    if body is None or len(body) < (size or 0):
        raise BadRequest("expected the whole body, found the end of the connection")
    if len(body) > limit:
        raise _too_large(limit)
    return body


def _pieces(content: bytes) -> Iterator[bytes]:
    """Yield `content` in pieces of at most PIECE bytes. Between two pieces, the event loop runs."""
    for start in range(0, len(content), PIECE):
        if start:
            yield_to_event_loop()
        yield content[start : start + PIECE]


def _unpacked(packed: bytes, encoding: str, limit: int) -> bytes:
    """Decompress `packed`. Raises 413 if the result has more than `limit` bytes, 400 if `packed` is damaged."""
    # By RFC 9110, `deflate` starts with zlib's header: the low four bits of byte 0 are 8. Some clients omit the header.
    bits = 31 if "gzip" in encoding else 15 if packed[:1] and packed[0] & 15 == 8 else -15
    unpacker, body = zlib.decompressobj(bits), bytearray()
    try:
        for piece in _pieces(packed):
            while piece:
                if unpacker.eof:  # gzip data may consist of several members, one after the other
                    unpacker = zlib.decompressobj(bits)
                body += unpacker.decompress(piece, PIECE)
                if len(body) > limit:
                    raise _too_large(limit)
                yield_to_event_loop()
                piece = unpacker.unconsumed_tail or unpacker.unused_data
        body += unpacker.flush()
    except zlib.error as error:
        raise BadRequest(f"expected a body in {encoding}, found: {error}") from error
    if not unpacker.eof:
        raise BadRequest(f"expected a whole body in {encoding}, found only its beginning")
    return bytes(body)


def _too_large(limit: int) -> RequestEntityTooLarge:
    return RequestEntityTooLarge(f"expected a body of at most {limit} bytes, found a larger one")
