"""Image decoding: from a client's bytes to an upright, opaque, grey picture of at most 768×768 pixels.

serve.pictures.preprocess then brings the picture into the model's form.
"""

import io
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, ImageOps, ImageStat

from serve.pictures.preprocess import SIDE, Grey, ImageError, Preprocess, in_form, to_mnist

MAX_PIXELS = 25_000_000
Image.MAX_IMAGE_PIXELS = None  # disables Pillow's limit: _read checks `max_pixels` instead
MAX_WEBP_PIXELS = 13_000_000  # libwebp and Pillow need 16 bytes per pixel; a decoding process has 224 MiB
FORMATS = ("PNG", "JPEG", "WebP", "GIF")
SIGNATURES = re.compile(  # the first bytes of a file; error messages name the formats that are not accepted
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
DECODED_SIDE = 512  # pixels: a larger picture is reduced by a whole factor, so that its longer side is about this
BAND = 64  # rows of the reduced picture that are converted at a time, to save memory


def format_of(content: bytes) -> str | None:
    """Return the name of the format that the first bytes of `content` indicate, or None if SIGNATURES lacks it."""
    found = SIGNATURES.match(content)
    return str(found.lastgroup).replace("_", " ") if found else None


def decode(content: bytes, preprocess: Preprocess = "auto", max_pixels: int = MAX_PIXELS) -> Grey:
    """Decode a PNG, JPEG, WebP or GIF into the model's input, uint8 [28, 28]; of an animation, the first frame.

    `preprocess`: `none` only converts a picture of 28×28 to grey; `mnist` applies serve.pictures.preprocess.to_mnist;
    `auto` also applies it, unless the picture already has MNIST's form.
    Raises ImageError if the content has another format, is damaged, has more than `max_pixels`, shows no digit or more
    than one (`auto`, `mnist`) or is not 28×28 (`none`); MemoryError if it exceeds the process's memory limit.
    A hostile picture may need much time and memory: serve.pictures.decoder_pool limits both.
    """
    picture = _read(content, (SIDE, SIDE) if preprocess == "none" else None, max_pixels)
    if preprocess != "mnist" and picture.size == (SIDE, SIDE):
        grey = np.asarray(picture.convert("L"))
        if preprocess == "none" or in_form(grey):
            return grey
    return to_mnist(np.asarray(_to_grey(picture)))


def _read(content: bytes, expected: tuple[int, int] | None, max_pixels: int) -> Image.Image:
    """Return the first frame: upright, opaque, L or RGB, reduced to about DECODED_SIDE. `expected`: required size."""
    name = format_of(content)
    if name not in FORMATS:
        found = name or f"{len(content):,} bytes of another format"
        raise ImageError(f"expected a PNG, JPEG, WebP or GIF picture, found {found}")
    limit = min(max_pixels, MAX_WEBP_PIXELS) if name == "WebP" else max_pixels
    refusal = f"expected a whole {name} picture of at most {limit:,} pixels, found a truncated, damaged or larger one"
    with _raising(refusal), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged metadata, which does not matter here
        image = Image.open(io.BytesIO(_without_metadata(content) if name == "PNG" else content), formats=[name])
    width, height = image.size
    if not 0 < width * height <= limit:
        raise ImageError(f"expected at most {limit:,} pixels, found {width:,}×{height:,}")
    if expected and image.size != expected:
        raise ImageError(f"expected {expected[0]}×{expected[1]} pixels, found {width}×{height}")
    with _raising(refusal):
        factor = _factor(image)
        image.draft(None, (max(1, width // factor), max(1, height // factor)))  # reduces a JPEG while it is decoded
        image.load()
        return _upright(_reduced(image), image)


@contextmanager
def _raising(refusal: str) -> Iterator[None]:
    """Convert every exception of Pillow's parsers, except MemoryError, to ImageError with the message `refusal`."""
    try:
        yield
    except MemoryError:
        raise
    except Exception:
        raise ImageError(refusal) from None


def _without_metadata(png: bytes) -> bytes:
    """Remove ancillary chunks, except transparency and Exif. Pillow refuses a PNG if they are large or damaged."""
    kept, start = [png[:8]], 8
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4])
        kind = png[start + 4 : start + 8]
        is_whole = zlib.crc32(png[start + 4 : end - 4]) == int.from_bytes(png[end - 4 : end])
        if kind[:1].isupper() or (kind in (b"tRNS", b"eXIf") and is_whole):
            kept.append(png[start:end])
        start = end
    return b"".join(kept)


def _upright(picture: Image.Image, source: Image.Image) -> Image.Image:
    """Rotate the picture in place by the Exif orientation of its source; damaged metadata is ignored."""
    try:
        orientation = source.getexif().get(ExifTags.Base.Orientation)
    except Exception:
        return picture
    picture.info = {}  # otherwise exif_transpose writes the metadata again, which fails for some cameras
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _factor(image: Image.Image) -> int:
    """Return the factor that reduces the longer side to about DECODED_SIDE."""
    return max(1, round(max(image.size) / DECODED_SIDE))


def _reduced(image: Image.Image) -> Image.Image:
    """Return the picture opaque, in L or RGB, reduced to about DECODED_SIDE. Other modes are converted in bands."""
    factor = _factor(image)
    if image.mode in ("L", "RGB") and not image.has_transparency_data:
        return image.reduce(factor) if factor > 1 else image
    rows = BAND * factor
    boxes = ((0, top, image.width, min(image.height, top + rows)) for top in range(0, image.height, rows))
    values = np.concatenate([np.asarray(_plain(image.crop(box)).reduce(factor)) for box in boxes])
    if values.ndim == 2:  # mode F: more than 8 bits per pixel; the values may use only part of that range
        return Image.fromarray((values * (255 / max(values.max(), 1))).round().astype(np.uint8))
    picture = Image.fromarray(values)
    return _opaque(picture) if picture.mode == "RGBA" else picture


def _plain(band: Image.Image) -> Image.Image:
    """Convert the band to mode F if it has more than 8 bits, to RGBA if it has transparency, otherwise to RGB."""
    if band.mode[0] in "IF":  # Pillow's own conversion of I;16 limits values to 255
        return Image.fromarray(np.asarray(band, np.float32))
    return band.convert("RGBA" if band.has_transparency_data else "RGB")


def _opaque(picture: Image.Image) -> Image.Image:
    """Fill transparent pixels with the median of the opaque ones, or with black or white if most are transparent."""
    alpha = np.asarray(picture.getchannel("A"), np.float32) / 255
    shades = np.asarray(picture.convert("L"), np.float32)
    if alpha.mean() > 0.5:
        fill = round(float(np.median(shades[alpha > 0.5])))
    else:
        fill = 255 if float((alpha * (shades - 127.5)).sum()) < 0 else 0
    background = Image.new("RGBA", picture.size, (fill, fill, fill, 255))
    return Image.alpha_composite(background, picture).convert("RGB")


def _to_grey(picture: Image.Image) -> Image.Image:
    """Convert to luminance, or to the colour channel with the most contrast if luminance has less than half of it.

    A channel is used, for example, for yellow on white, blue on black and red on green.
    """
    grey = picture.convert("L")
    if picture.mode == "L":
        return grey
    factor = -(-max(picture.size) // 32)
    contrasts = ImageStat.Stat(picture.reduce(factor)).stddev
    if ImageStat.Stat(grey.reduce(factor)).stddev[0] >= max(contrasts) / 2:
        return grey
    return picture.getchannel(contrasts.index(max(contrasts)))
