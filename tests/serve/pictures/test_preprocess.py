"""Preprocessing: a picture of several digits is refused, and a digit is found among other marks and on a sheet."""

import io
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from benchmarks.forms import FORMS, pair
from benchmarks.pictures import predict_digits
from serve.pictures.decode import decode
from serve.pictures.preprocess import ImageError, to_mnist


def test_two_digits_side_by_side_are_refused(images):
    random = np.random.default_rng(0)
    digits = [Image.fromarray(pixels) for pixels in images[:400]]
    accepted = 0
    for first, second in zip(digits[:200], digits[200:], strict=True):
        with suppress(ImageError):
            decode(pair(first, second, random))
            accepted += 1
    assert accepted <= 10


def test_the_error_has_the_number_and_places_of_the_digits():
    page = Image.new("L", (400, 300), 255)
    draw = ImageDraw.Draw(page)
    for left in (50, 200, 350):
        draw.line([(left, 60), (left + 10, 140)], fill=0, width=8)
    with pytest.raises(ImageError) as caught:
        to_mnist(np.asarray(page))
    places = "11–16 % and 48–53 % and 86–91 % of the width"
    assert str(caught.value) == f"expected one digit, found 3 separate marks, at {places}"
    draw.line([(350, 170), (352, 240)], fill=0, width=8)
    to_mnist(np.asarray(page))  # two marks that lie above each other count as one digit


def test_a_zero_is_not_a_frame_for_dirt_inside_it():
    page = Image.new("L", (300, 300), 255)
    draw = ImageDraw.Draw(page)
    draw.ellipse([80, 50, 220, 250], outline=0, width=18)
    draw.ellipse([140, 140, 150, 150], fill=0)
    found = to_mnist(np.asarray(page))
    assert found[14, 14] == 0
    assert found[:, 14].max() >= 254  # the maximum of the image, 255, is in another column


def test_a_thin_zero_is_not_a_frame_either_and_dirt_does_not_replace_a_digit_at_the_border():
    page = Image.new("L", (80, 80), 255)
    draw = ImageDraw.Draw(page)
    draw.ellipse([20, 8, 58, 72], outline=0, width=2)
    draw.rectangle([36, 36, 43, 43], fill=0)
    assert (to_mnist(np.asarray(page)).max(axis=0) > 0).sum() == 13
    one = np.full((80, 80), 255, np.uint8)
    one[:60, 36:44] = one[60:62, 60:62] = 0
    assert (to_mnist(one).max(axis=1) > 0).sum() == 20


def test_a_blot_among_many_specks_is_no_digit():
    page = np.full((80, 80), 255, np.uint8)
    page[2:78, 2:78][np.logical_and.outer(np.arange(76) % 6 < 2, np.arange(76) % 6 < 2)] = 0
    page[35:45, 35:45] = 0
    with pytest.raises(ImageError, match="found no ink"):
        to_mnist(page)


def test_a_faint_mark_beside_the_digit_is_not_part_of_it():
    page = Image.new("L", (300, 300), 255)
    draw = ImageDraw.Draw(page)
    draw.line([(100, 60), (200, 60), (200, 240), (100, 240)], fill=0, width=16)
    draw.line([(40, 60), (40, 240)], fill=130, width=6)
    found = to_mnist(np.asarray(page))
    assert (found.max(axis=0) > 0).sum() == 12  # 116×196 pixels scaled to fit 20×20


def test_thinning_thick_strokes_does_not_remove_a_thinner_one():
    page = Image.new("L", (280, 280), 255)
    draw = ImageDraw.Draw(page)
    draw.ellipse([90, 20, 190, 120], fill=0)
    draw.ellipse([90, 160, 190, 260], fill=0)
    draw.rectangle([129, 100, 151, 180], fill=0)  # a thinner stroke, which joins the two discs
    assert to_mnist(np.asarray(page))[14].max() > 100


def test_a_digit_of_three_percent_of_the_side_is_read_and_a_smaller_one_is_refused(images, labels):
    def page(pixels, size):
        """Return a page of 533×400 with the digit's ink scaled to fit `size` × `size` pixels."""
        digit, page = Image.fromarray(pixels), Image.new("L", (533, 400), 235)
        page.paste(30, (240, 170), ImageOps.contain(digit.crop(digit.getbbox()), (size, size)))
        return np.asarray(page)

    found = np.stack([to_mnist(page(pixels, 16)) for pixels in images[:60]])
    assert np.mean(predict_digits(found) == labels[:60]) >= 0.95
    with pytest.raises(ImageError, match=r"^expected a digit of at least 6 pixels, found 5: crop closer$"):
        to_mnist(page(images[0], 5))


@pytest.mark.parametrize(("form", "least"), [("coarse", 93), ("stretched", 90), ("thick", 98)])
def test_blurred_or_thick_ink_is_no_shadow(form, least, mnist):
    random = np.random.default_rng(0)
    images, labels = mnist.train.images[:100].numpy(), mnist.train.labels[:100].numpy()
    found = np.zeros_like(images)
    for place, pixels in zip(found, images, strict=True):
        with suppress(ImageError):
            place[:] = decode(FORMS[form].render(Image.fromarray(pixels), random))
    assert (predict_digits(found) == labels).sum() >= least


def test_a_mark_in_a_very_wide_picture_is_found():
    wide = np.full((9, 512), 255, np.uint8)
    wide[2:7, 440:480] = 0
    assert to_mnist(wide).max() == 255


@pytest.mark.parametrize("width", [0, 1, 2, 3, 6, 20, 60, 200])
@pytest.mark.parametrize("level", [0, 128])
def test_a_frame_of_any_width_and_grey_is_no_digit(images, labels, width, level):
    sheets = [ImageOps.invert(Image.fromarray(pixels).resize((200, 200))) for pixels in images[1:5]]
    framed = [ImageOps.expand(sheet, width, level) for sheet in sheets]
    for pictures in (framed, [ImageOps.invert(picture) for picture in framed]):
        found = np.stack([to_mnist(np.asarray(picture)) for picture in pictures])
        assert predict_digits(found).tolist() == labels[1:5].tolist()


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
    draw.ellipse([140, 80, 160, 100], fill=0)  # dirt in the upper loop of the 8
    found = to_mnist(np.asarray(page))
    assert ((found.max(axis=1) > 0).sum(), (found.max(axis=0) > 0).sum()) == (20, 11)
