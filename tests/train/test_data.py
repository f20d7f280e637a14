"""A data set is loaded completely and checked, or refused with one line that names the file."""

import gzip
import hashlib

import numpy as np
import pytest
import torch

from train import TrainError
from train.data import SUMS, load

LABELS = "t10k-labels-idx1-ubyte"
IMAGES = "train-images-idx3-ubyte: expected "


def test_mnist_is_split_into_55000_5000_and_10000(mnist):
    assert [len(split) for split in (mnist.train, mnist.validation, mnist.test)] == [55_000, 5_000, 10_000]
    assert mnist.train.images.shape == (55_000, 28, 28)
    assert mnist.train.images.dtype == torch.uint8
    assert mnist.train.labels.dtype == torch.int64
    assert mnist.name == "mnist"
    assert mnist.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # in the order of the file


def test_training_and_validation_share_no_image_and_miss_none(mnist):
    images = torch.cat([mnist.train.images, mnist.validation.images]).numpy()
    hashes = {hashlib.sha256(image.tobytes()).digest() for image in images}
    assert len(hashes) == 60_000  # MNIST's training images are all different


def test_validation_is_the_same_every_time(mnist):
    assert torch.equal(load().validation.images, mnist.validation.images)


def test_missing_or_damaged_file_is_refused_by_name(gzipped):
    path = gzipped / f"{LABELS}.gz"
    content = path.read_bytes()
    for damaged in (content[:2_000], content + b"garbage"):
        path.write_bytes(damaged)
        with pytest.raises(TrainError, match=rf"{LABELS}\.gz: expected a whole gzip file, found [\d,]+ bytes"):
            load(gzipped)
    path.unlink()
    with pytest.raises(TrainError, match=rf"cannot read .*{LABELS}\.gz: No such file"):
        load(gzipped)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_altered_file_is_named_with_both_hashes(suffix, gzipped, mnist):
    path = gzipped / f"{LABELS}.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[100] ^= 1
    path.unlink()
    path.with_name(f"{LABELS}{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(
        TrainError, match=rf"{LABELS}{suffix}: expected SHA-256 {mnist.sha256[LABELS]} .* found {found}"
    ):
        load(gzipped)


def test_sums_without_a_file_are_refused(gzipped):
    (gzipped / SUMS).write_text("00  something-else\n")
    message = "SHA256SUMS: expected a line for train-images-idx3-ubyte, found lines for something-else"
    with pytest.raises(TrainError, match=message):
        load(gzipped)


@pytest.mark.parametrize("prefix", ["./", "*", "*./"])
def test_sums_are_read_as_any_tool_writes_them(prefix, gzipped, mnist):
    (gzipped / SUMS).write_text("".join(f"{digest}  {prefix}{name}\n" for name, digest in mnist.sha256.items()))
    assert load(gzipped).sha256 == mnist.sha256


@pytest.mark.parametrize("layout", ["", "MNIST/raw"])  # the second layout is torchvision's
def test_drop_in_set_is_read_plain(layout, tmp_path, write_idx):
    random = np.random.default_rng(0)
    sets = [(random.integers(0, 256, (n, 28, 28), np.uint8), (np.arange(n) % 10).astype(np.uint8)) for n in (240, 30)]
    write_idx(tmp_path / "drop-in" / layout, *sets)
    data = load(tmp_path / "drop-in")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [220, 20, 30]
    assert data.name == "drop-in"
    assert np.array_equal(data.test.images.numpy(), sets[1][0])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((24, 28, 27), np.uint8), np.zeros(24, np.uint8), IMAGES + r"shape .*28, 28\], found \[24, 28, 27\]"),
        (np.zeros((24, 784), np.uint8), np.zeros(24, np.uint8), "images-idx3-ubyte, .*x should have 3 dimension"),
        (np.zeros((24, 28, 28), np.uint8), np.zeros(23, np.uint8), "labels-idx1-ubyte: expected 24 labels.*found 23"),
        (np.zeros((0, 28, 28), np.uint8), np.zeros(0, np.uint8), "images-idx3-ubyte, .*no greater than buffer length"),
        (np.zeros((24, 28, 28), np.uint8), np.full(24, 10, np.uint8), "ubyte: expected labels 0–9, found 10"),
    ],
)
def test_set_of_another_form_is_refused(tmp_path, write_idx, images, labels, message):
    folder = write_idx(tmp_path / "odd", (images, labels), (images, labels))
    with pytest.raises(TrainError, match=message):
        load(folder)


def idx(kind: int, *sides: int, values: int) -> bytes:
    return bytes([0, 0, kind, len(sides)]) + b"".join(side.to_bytes(4, "big") for side in sides) + bytes(values)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an IDX file, but long enough for a header",
        idx(8, 300, 28, 28, values=784),
        idx(8, 300, 28, 28, values=301 * 784),
        idx(10, 300, 28, 28, values=300 * 784),
        idx(8, 0, 28, 28, values=0),
        idx(8, 300, 28, 28, values=0)[:7],
    ],
    ids=["empty", "text", "short", "long", "another type", "no image", "half a header"],
)
def test_file_that_is_not_idx_is_refused_by_name(tmp_path, subset, content):
    for path in subset.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(content)
    message = "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte: expected images and labels in IDX format, uint8"
    with pytest.raises(TrainError, match=message):
        load(tmp_path)
