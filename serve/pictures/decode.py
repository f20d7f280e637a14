"""Image decoding: from a client's bytes to an upright, opaque, grey picture of at most 768×768 pixels.

serve.pictures.preprocess then brings the picture into the model's form.
"""

import io
import re
import warnings
import zlib
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps

from serve.pictures.preprocess import SIDE, Grey, ImageError, Preprocess, prepare, to_mnist

MAX_PIXELS = 25_000_000
Image.MAX_IMAGE_PIXELS = None  # disables Pillow's limit: _parsed checks `max_pixels` instead
MAX_OTHER_PIXELS = 13_000_000  # WebP, transparency, modes other than L and RGB take up to 16 bytes of memory per pixel
FORMATS = ("PNG", "JPEG", "WebP", "GIF")
SIGNATURES = re.compile(  # the first bytes of each format; formats that are not in FORMATS are only named in errors
    rb"""(?P<PNG>\x89PNG\r\n\x1a\n)
    |(?P<JPEG>\xff\xd8\xff)
    |(?P<WebP>RIFF....WEBP)
    |(?P<GIF>GIF8[79]a)
    |(?P<AVIF>....ftyp(....){0,8}?avi[fs])
    |(?P<HEIC>....ftyp(....){0,8}?(hei[cmsx]|hev[cmsx]|mif1|msf1))
    |(?P<SVG>(?i:(\xef\xbb\xbf)?\s{0,99}<(svg|[?!].{0,1000}?<svg)))
    |(?P<PDF>%PDF-)
    |(?P<TIFF>II[*+]\0|MM\0[*+])
    |(?P<BMP>BM.{4}\0\0\0\0)
    |(?P<JPEG_XL>\xff\x0a|\0\0\0\x0cJXL\x20)""",
    re.DOTALL | re.VERBOSE,
)
DECODED_SIDE = 512  # pixels: the longer side of a larger picture is reduced to about this length


def format_of(content: bytes) -> str | None:
    """Return the name of the format that the first bytes of `content` indicate, or None if none of SIGNATURES match."""
    found = SIGNATURES.match(content)
    return str(found.lastgroup).replace("_", " ") if found else None


def decode(content: bytes, preprocess: Preprocess = "auto", max_pixels: int = MAX_PIXELS) -> Grey:
    """Decode a PNG, JPEG, WebP or GIF (the first frame of an animation) into the model's input, uint8 [28, 28].

    `preprocess`: `none` only converts a picture of 28×28 to grey; `mnist` applies serve.pictures.preprocess.to_mnist;
    `auto` applies to_mnist only to a picture that is not in MNIST's form yet.
    Raises ImageError if the content has another format, is damaged or has more than `max_pixels` pixels; with `none`,
    also if the picture is not 28×28; with `auto` and `mnist`, also if it does not show exactly one digit. Raises
    MemoryError at the process's memory limit. serve.pictures.decoder_pool limits the time and the memory of decoding.
    """
    grey = np.asarray(_read(content, preprocess, max_pixels))
    return prepare(grey, preprocess) if grey.shape == (SIDE, SIDE) else to_mnist(grey)


def _read(content: bytes, preprocess: Preprocess, max_pixels: int) -> Image.Image:
    """Return the first frame as a grey picture (mode L): upright, opaque, reduced if larger than DECODED_SIDE."""
    name = format_of(content)
    if name not in FORMATS:
        found = name or f"{len(content):,} bytes of another format"
        raise ImageError(f"expected a PNG, JPEG, WebP or GIF picture, found {found}")
    try:
        return _parsed(_without_metadata(content) if name == "PNG" else content, name, preprocess, max_pixels)
    except (ImageError, MemoryError):
        raise
    except Exception:  # Pillow's parsers raise many kinds of exceptions
        expected = f"expected a whole {name} picture of at most {max_pixels:,} pixels"
        raise ImageError(f"{expected}, found a truncated, damaged or larger one") from None


def _parsed(content: bytes, name: str, preprocess: Preprocess, max_pixels: int) -> Image.Image:
    with warnings.catch_warnings(action="ignore"):  # Pillow warns about damaged metadata, which does not matter
        image = Image.open(io.BytesIO(content), formats=[name])
    width, height = image.size
    if name == "WebP" or image.mode not in ("L", "RGB") or image.has_transparency_data:
        max_pixels = min(max_pixels, MAX_OTHER_PIXELS)
    if not 0 < width * height <= max_pixels:
        raise ImageError(f"expected at most {max_pixels:,} pixels, found {width:,}×{height:,}")
    if preprocess == "none" and image.size != (SIDE, SIDE):
        raise ImageError(f"expected {SIDE}×{SIDE} pixels, found {width}×{height}")
    # Decode a JPEG at a reduced size, which saves time and memory. Other formats are decoded at their full size.
    image.draft(None, (width * 384 // max(image.size) or 1, height * 384 // max(image.size) or 1))
    picture = _reduced(image).convert("L")
    picture.info = image.info
    with suppress(Exception), warnings.catch_warnings(action="ignore"):  # damaged metadata is ignored
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _without_metadata(png: bytes) -> bytes:
    """Remove ancillary chunks, because Pillow refuses large or damaged ones. Keep undamaged tRNS and eXIf chunks."""
    kept, start = [png[:8]], 8
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4])
        kind = png[start + 4 : start + 8]
        is_whole = zlib.crc32(png[start + 4 : end - 4]) == int.from_bytes(png[end - 4 : end])
        if kind[:1].isupper() or (kind in (b"tRNS", b"eXIf") and is_whole):
            kept.append(png[start:end])
        start = end
    return b"".join(kept)


def _reduced(image: Image.Image) -> Image.Image:
    """Return an opaque picture in mode L or RGB. A large one is reduced by an integer factor, to about DECODED_SIDE."""
    factor = max(1, round(max(image.size) / DECODED_SIDE))
    if image.mode[0] in "IF":  # more than 8 bits per pixel: scale the largest value to 255
        values = np.asarray(image, np.float32)  # Pillow's own conversion of mode I;16 would clip values at 255
        image = Image.fromarray((values * (255 / max(values.max(), 1))).round().astype(np.uint8))
    if image.has_transparency_data:  # an RGBA picture is not converted: convert() would need memory for a copy
        return _opaque((image if image.mode == "RGBA" else image.convert("RGBA")).reduce(factor))
    return (image if image.mode in ("L", "RGB") else image.convert("RGB")).reduce(factor)


def _opaque(picture: Image.Image) -> Image.Image:
    """Fill transparent pixels with the opaque pixels' median; if most are transparent, white (dark ink) or black."""
    alpha = np.asarray(picture.getchannel("A"), np.float32) / 255
    shades = np.asarray(picture.convert("L"), np.float32)
    fill = 255 if float((alpha * (shades - 127.5)).sum()) < 0 else 0
    if alpha.mean() > 0.5:
        fill = round(float(np.median(shades[alpha > 0.5])))
    background = Image.new("RGBA", picture.size, (fill, fill, fill, 255))
    return Image.alpha_composite(background, picture).convert("RGB")
