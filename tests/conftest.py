"""Data sets and ready-made exports that the tests share."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from train import paths
from train.__main__ import main
from train.data import FILES, Data, load

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@pytest.fixture(scope="session")
def mnist() -> Data:
    return load()


@pytest.fixture(scope="session")
def images(mnist) -> NDArray[np.uint8]:
    """Return MNIST's test images, uint8 [10000, 28, 28]."""
    return mnist.test.images.numpy()


@pytest.fixture(scope="session")
def labels(mnist) -> NDArray[np.int64]:
    return mnist.test.labels.numpy()


@pytest.fixture(scope="session")
def write_idx() -> Callable[[Path, Arrays, Arrays], Path]:
    """Return a function that writes a data set, (images, labels) for training and for test, as four IDX files."""

    def write(folder: Path, train: Arrays, test: Arrays) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in zip(FILES, (*train, *test), strict=True):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
            (folder / name).write_bytes(header + array.tobytes())
        return folder

    return write


@pytest.fixture(scope="session")
def subset(tmp_path_factory, mnist, write_idx) -> Path:
    """Return a folder with 1,800 training and 300 test images of the real MNIST, as IDX files."""
    train, test = (
        (split.images[:count].numpy(), split.labels[:count].numpy().astype(np.uint8))
        for split, count in ((mnist.train, 1_800), (mnist.test, 300))
    )
    return write_idx(tmp_path_factory.mktemp("data") / "subset", train, test)


@pytest.fixture
def gzipped(tmp_path) -> Path:
    """Return a copy of data/mnist that a test may damage."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for path in paths.DATA.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, subset) -> Path:
    """Return what `python -m train` writes: Model_2 and Model_3, two epochs on the subset."""
    out = tmp_path_factory.mktemp("trained")
    options = ["--models", "Model_2", "Model_3", "--epochs", "2", "--device", "cpu"]
    assert main([*options, "--data", str(subset), "--out", str(out)]) == 0
    return out


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory) -> None:
    """Keep the unpacked data sets of the tests away from the user's own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
