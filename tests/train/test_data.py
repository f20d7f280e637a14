"""The data set is read whole and checked, or refused with a line that names the file."""

import gzip
import hashlib

import numpy as np
import pytest
import torch

from train.data import SUMS, load
from train.errors import DataError

LABELS = "t10k-labels-idx1-ubyte"


def test_mnist_is_split_into_55000_5000_and_10000(mnist):
    assert [len(split) for split in (mnist.train, mnist.validation, mnist.test)] == [55_000, 5_000, 10_000]
    assert mnist.train.images.shape == (55_000, 28, 28)
    assert mnist.train.images.dtype == torch.uint8
    assert mnist.train.labels.dtype == torch.int64
    assert mnist.name == "mnist"


def test_training_and_validation_share_no_image_and_miss_none(mnist):
    images = torch.cat([mnist.train.images, mnist.validation.images]).numpy()
    hashes = {hashlib.sha256(image.tobytes()).digest() for image in images}
    assert len(hashes) == 60_000  # MNIST's training images are all different


def test_validation_is_the_same_every_time(mnist):
    assert torch.equal(load().validation.images, mnist.validation.images)


def test_test_images_keep_the_order_of_the_files(mnist):
    assert mnist.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_states_the_hashes_of_the_unpacked_files(mnist, gzipped):
    stated = dict(reversed(line.split()) for line in (gzipped / SUMS).read_text().splitlines())
    assert mnist.sha256 == stated


def test_missing_file_is_named_with_its_hash(gzipped, mnist):
    (gzipped / f"{LABELS}.gz").unlink()
    with pytest.raises(DataError, match=rf"{LABELS}\.gz: expected the file of SHA-256 {mnist.sha256[LABELS]}"):
        load(gzipped)


def test_truncated_file_is_named_with_both_hashes(gzipped, mnist):
    path = gzipped / f"{LABELS}.gz"
    path.write_bytes(path.read_bytes()[:2_000])
    with pytest.raises(
        DataError, match=rf"{LABELS}\.gz: expected SHA-256 {mnist.sha256[LABELS]} .* found [0-9a-f]{{64}}.*cut short"
    ):
        load(gzipped)


def test_altered_file_is_named_with_both_hashes_even_after_a_good_one_was_read(gzipped, mnist):
    load(gzipped)
    path = gzipped / f"{LABELS}.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[100] ^= 1
    path.write_bytes(gzip.compress(content))
    found = hashlib.sha256(content).hexdigest()
    with pytest.raises(DataError, match=rf"{LABELS}\.gz: expected SHA-256 {mnist.sha256[LABELS]} .* found {found}"):
        load(gzipped)


def test_damaged_gzip_is_refused_without_sums_too(gzipped):
    (gzipped / SUMS).unlink()
    path = gzipped / f"{LABELS}.gz"
    path.write_bytes(path.read_bytes()[:2_000])
    with pytest.raises(DataError, match=rf"{LABELS}\.gz: expected a whole gzip file"):
        load(gzipped)


def test_sums_without_a_file_are_refused(gzipped):
    (gzipped / SUMS).write_text("00  something-else\n")
    with pytest.raises(DataError, match="SHA256SUMS: expected a line for train-images-idx3-ubyte"):
        load(gzipped)


def test_drop_in_set_is_read_plain(tmp_path, write_idx):
    random = np.random.default_rng(0)
    sets = [(random.integers(0, 256, (n, 28, 28), np.uint8), (np.arange(n) % 10).astype(np.uint8)) for n in (240, 30)]
    data = load(write_idx(tmp_path / "drop-in", *sets))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [220, 20, 30]
    assert data.name == "drop-in"
    assert np.array_equal(data.test.images.numpy(), sets[1][0])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((24, 28, 27), np.uint8), np.zeros(24, np.uint8), "28×28 pixels.*found \\[24, 28, 27\\]"),
        (np.zeros((24, 28, 28), np.uint8), np.zeros(23, np.uint8), "expected 23 .* images .*found \\[24, 28, 28\\]"),
        (np.zeros((24, 28, 28), np.uint8), np.full(24, 10, np.uint8), "labels 0–9, found 10–10"),
        (np.zeros((3, 28, 28), np.uint8), np.zeros(3, np.uint8), "12 or more .* images, found 3"),
    ],
)
def test_set_of_another_form_is_refused(tmp_path, write_idx, images, labels, message):
    folder = write_idx(tmp_path / "odd", (images, labels), (images, labels))
    with pytest.raises(DataError, match=message):
        load(folder)


def test_file_that_is_not_idx_is_refused(tmp_path, subset):
    for path in subset.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "train-images-idx3-ubyte").write_bytes(b"not an IDX file, but long enough for a header")
    with pytest.raises(DataError, match="expected the training files to be IDX"):
        load(tmp_path)


def test_cache_that_was_damaged_is_made_anew(tmp_path, subset, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = load(subset)
    (cached,) = tmp_path.rglob("t10k-images-idx3-ubyte")
    content = bytearray(cached.read_bytes())
    content[1_000] ^= 255
    cached.write_bytes(content)
    after = load(subset)
    assert after.sha256 == before.sha256
    assert torch.equal(after.test.images, before.test.images)


def test_cache_that_cannot_be_written_names_the_way_out(tmp_path, subset, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="set XDG_CACHE_HOME"):
        load(subset)


def test_a_user_without_a_home_has_the_cache_in_a_temporary_folder(tmp_path, subset, monkeypatch):
    def unknown(_):
        raise KeyError

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert len(load(subset).test) == 300
    assert (tmp_path / "mnist-progression").is_dir()
