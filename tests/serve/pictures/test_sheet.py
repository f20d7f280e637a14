"""A sheet in view: only what is on it is read; what only looks like a sheet changes nothing."""

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from benchmarks.forms import FORMS, pair
from benchmarks.pictures import predict_digits
from serve.pictures.decode import decode
from serve.pictures.preprocess import ImageError, to_mnist

STROKES = {
    1: [[(100, 45), (100, 155)]],
    7: [[(60, 50), (140, 50), (90, 155)]],
    4: [[(75, 45), (60, 105), (140, 105)], [(120, 45), (120, 155)]],
}


def drawn(digit: int) -> Image.Image:
    page = Image.new("L", (200, 200), 255)
    for stroke in STROKES[digit]:
        ImageDraw.Draw(page).line(stroke, fill=0, width=14, joint="curve")
    return page


@pytest.mark.parametrize(
    ("form", "least"),
    [("framed", 28), ("light_framed", 28), ("on_table", 28), ("on_cloth", 26), ("cut_off", 27), ("own_shadow", 25)],
)
def test_the_digit_on_a_sheet_is_read(form, least, mnist):
    images, labels = mnist.train.images[:30].numpy(), mnist.train.labels[:30].numpy()
    random = [np.random.default_rng(number) for number in range(30)]
    pictures = [FORMS[form].render(Image.fromarray(pixels), rng) for pixels, rng in zip(images, random, strict=True)]
    found = predict_digits(np.stack([decode(picture) for picture in pictures]))
    assert (found == labels).sum() >= least


@pytest.mark.parametrize("width", [0, 1, 2, 3, 6, 20, 60, 200])
@pytest.mark.parametrize("level", [0, 128])
def test_a_frame_of_any_width_and_grey_is_no_digit(width, level):
    framed = [ImageOps.expand(drawn(digit), width, level) for digit in STROKES]
    for pictures in (framed, [ImageOps.invert(picture) for picture in framed]):
        found = np.stack([to_mnist(np.asarray(picture)) for picture in pictures])
        assert predict_digits(found).tolist() == list(STROKES)


def test_several_digits_on_a_sheet_are_refused(images):
    random = np.random.default_rng(0)
    for first, second in images[:20].reshape(10, 2, 28, 28):
        page = Image.open(io.BytesIO(pair(*map(Image.fromarray, (first, second)), random))).convert("L")
        with pytest.raises(ImageError, match=r"^expected one digit"):
            to_mnist(np.asarray(ImageOps.expand(page, 40, 60)))


@pytest.mark.parametrize("width", [14, 20, 26])
def test_a_printed_8_is_no_sheet(width):
    page = Image.new("L", (300, 300), 255)
    draw = ImageDraw.Draw(page)
    draw.rectangle([90, 40, 210, 150], outline=0, width=width)
    draw.rectangle([90, 151 - width, 210, 260], outline=0, width=width)
    draw.ellipse([140, 80, 160, 100], fill=0)  # dirt in its upper loop
    found = to_mnist(np.asarray(page))
    assert ((found.max(axis=1) > 0).sum(), (found.max(axis=0) > 0).sum()) == (20, 11)
