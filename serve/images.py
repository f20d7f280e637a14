"""Read an encoded picture: from bytes to an upright, opaque picture in grey, of at most 512 pixels a side.

This is what touches the bytes of a client. What brings the picture into the model's form is serve.preprocess.
"""

import io
import warnings

import numpy as np
from PIL import Image

from serve.preprocess import SIDE, Floats, Grey, ImageError, Preprocess, in_form, to_mnist

MAX_PIXELS = 25_000_000
MAX_BYTES = 8 * 2**20  # of an encoded picture: a phone's photo has 2 to 6 MB
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
WORKING_SIDE = 512  # a larger picture is reduced to this before anything is looked for in it
BAND = 64  # rows, once reduced, that are converted at a time
LUMINANCE: Floats = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green, blue; as Pillow has it
ORIENTATION = 0x0112  # Exif
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(content: bytes, preprocess: Preprocess = "auto", max_pixels: int = MAX_PIXELS) -> Grey:
    """Return the picture in an encoded PNG, JPEG, WebP or GIF as the model takes it, uint8 [28, 28].

    `none` takes a picture of 28×28 as it is, in grey; `mnist` takes any through the whole procedure; `auto` leaves one
    alone that is in MNIST's form already, and takes every other through it. Of an animation, the first frame counts.
    Raises ImageError where the content is not such a picture, is damaged, has more than MAX_BYTES or `max_pixels`, has
    no ink (`auto`, `mnist`) or is not 28×28 (`none`); MemoryError where a limit of memory is set and too low for it.
    The time and memory of a hostile picture are limited by the process that calls this: see serve.decoder.
    """
    picture = _read(content, (SIDE, SIDE) if preprocess == "none" else None, max_pixels)
    grey = np.asarray(picture.convert("L"))
    if preprocess == "none" or (preprocess == "auto" and grey.shape == (SIDE, SIDE) and in_form(grey[None])[0]):
        return grey
    return to_mnist(np.asarray(_in_grey(picture)))


def _read(content: bytes, expected: tuple[int, int] | None, max_pixels: int) -> Image.Image:
    """Return the first frame, upright, opaque, L or RGB, at most WORKING_SIDE a side; or of the `expected` size."""
    if len(content) > MAX_BYTES:
        raise ImageError(f"expected a picture of at most {MAX_BYTES:,} bytes, found {len(content):,}")
    try:
        # Pillow warns of bombs, which are refused below, and of metadata, which is not used.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError(f"expected at most {max_pixels:,} pixels, found far more") from None
    except MemoryError:
        raise
    except Exception:  # Pillow's parsers raise what comes their way
        if content[8:12] == b"WEBP":  # libwebp reserves the memory for the whole picture when it is opened
            raise ImageError("expected a whole WebP picture, small enough for a decoder, found another") from None
        raise ImageError(
            f"expected a PNG, JPEG, WebP or GIF picture, found {len(content):,} bytes that are none"
        ) from None
    width, height = image.size
    if not 0 < width * height <= max_pixels:
        raise ImageError(f"expected at most {max_pixels:,} pixels, found {width:,}×{height:,}")
    if expected and image.size != expected:
        raise ImageError(f"expected {expected[0]}×{expected[1]} pixels, found {width}×{height}")
    try:
        image.draft(None, (WORKING_SIDE, WORKING_SIDE))
        image.load()
        return _upright(_reduced(image), image)
    except MemoryError:
        raise
    except Exception:
        raise ImageError(f"expected a whole {image.format} picture, found it cut short or damaged") from None


def _upright(picture: Image.Image, source: Image.Image) -> Image.Image:
    """Turn the picture as its source's Exif says; damaged metadata does not damage a picture."""
    try:
        turn = TURNS.get(int(source.getexif().get(ORIENTATION, 1)))
    except Exception:
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _reduced(image: Image.Image) -> Image.Image:
    """Return the picture opaque, L or RGB, with a side of at most WORKING_SIDE; a band at a time, to spare memory."""
    width, height = image.size
    factor = -(-max(width, height) // WORKING_SIDE)
    if factor == 1:
        result = _plain(image)
    else:
        rows = BAND * factor
        crops = (image.crop((0, top, width, min(height, top + rows))) for top in range(0, height, rows))
        bands = [_plain(crop).reduce(factor) for crop in crops]
        result = Image.new(bands[0].mode, (bands[0].width, sum(band.height for band in bands)))
        for index, band in enumerate(bands):
            result.paste(band, (0, index * BAND))
    if result.mode == "F":
        return _eight_bit(result)
    return _opaque(result) if result.mode == "RGBA" else result


def _plain(band: Image.Image) -> Image.Image:
    """Return the band in one of four modes: F where it has more than 8 bits, RGBA, L or RGB."""
    if band.mode[0] in "IF":  # I;16 and its kin are not converted by Pillow, but cut off at 255
        return Image.fromarray(np.asarray(band, np.float32))
    if band.has_transparency_data:
        return band.convert("RGBA")
    return band.convert("L" if band.mode in ("1", "L") else "RGB")


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Scale to 0–255 by the white that the values suggest: 1, 8, 12 or 16 bits."""
    values = np.asarray(picture)
    white = next(white for white in (1, 255, 4095, 65535) if values.max() <= white)
    return Image.fromarray((values / white * 255).round().astype(np.uint8))


def _opaque(picture: Image.Image) -> Image.Image:
    """Put what is behind a transparent picture: more of its paper, or else black or white, whichever its ink is not."""
    alpha = np.asarray(picture.getchannel("A"), np.float32) / 255
    shades = np.asarray(picture.convert("L"), np.float32)
    if alpha.mean() > 0.5:
        fill = round(float(np.median(shades[alpha > 0.5])))
    else:
        fill = 255 if float((alpha * (shades - 127.5)).sum()) < 0 else 0
    behind = Image.new("RGBA", picture.size, (fill, fill, fill, 255))
    return Image.alpha_composite(behind, picture).convert("RGB")


def _in_grey(picture: Image.Image) -> Image.Image:
    """Return the picture in grey: its luminance, or where that tells too little apart, its leading colour difference.

    Yellow on white, blue on black, red on green: there the principal axis of the colours is taken.
    """
    if picture.mode == "L":
        return picture
    grey = picture.convert("L")
    sample = np.asarray(picture.resize((32, 32), Image.Resampling.BOX), np.float32).reshape(-1, 3)
    variances, axes = np.linalg.eigh(np.cov(sample.T))
    if float((sample @ LUMINANCE).var()) >= variances[-1] / 8:
        return grey
    values = np.asarray(picture, np.float32) @ axes[:, -1].astype(np.float32)
    return Image.fromarray(((values - values.min()) * (255 / max(float(np.ptp(values)), 1))).astype(np.uint8))
