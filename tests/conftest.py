"""Fixtures that all tests share: data sets, and the results of one training."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

# Let idle threads of OpenMP sleep. By default, they spin and occupy the cores: with two test workers, a training took
# twenty times as long. torch reads this variable when it is loaded, also in the processes that tests start.
os.environ["OMP_WAIT_POLICY"] = "passive"

import numpy as np
import pytest
from numpy.typing import NDArray

from train import paths
from train.__main__ import main
from train.data import FILES, Data, load

Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use the fixture `trained` as slow, because they wait for a training."""
    for item in items:
        if "trained" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """Return a folder that the workers of pytest-xdist share in this test run."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


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
def part(tmp_path_factory, mnist, write_idx) -> Callable[[str, int, int], Path]:
    """Return a function that writes the first training and test images of MNIST, as many as given, as IDX files."""

    def write(name: str, *counts: int) -> Path:
        train, test = (
            (split.images[:count].numpy(), split.labels[:count].numpy().astype(np.uint8))
            for split, count in zip((mnist.train, mnist.test), counts, strict=True)
        )
        return write_idx(tmp_path_factory.mktemp("data") / name, train, test)

    return write


@pytest.fixture(scope="session")
def subset(part) -> Path:
    """Return a folder with 1,800 training and 300 test images, enough for a network to learn the digits."""
    return part("subset", 1_800, 300)


@pytest.fixture(scope="session")
def tiny(part) -> Path:
    """Return a folder with 216 training and 50 test images: an epoch has three batches and takes 0.1 s."""
    return part("tiny", 216, 50)


@pytest.fixture
def gzipped(tmp_path) -> Path:
    """Return a copy of data/mnist that a test may damage."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for path in paths.DATA.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="session")
def trained(shared, subset) -> Path:
    """Return the folder that `python -m train` writes: Model_2 and Model_3, two epochs on the subset.

    The first test worker that needs this folder runs the training; the other workers wait.
    """
    out = shared / "trained"
    options = ["--models", "Model_2", "Model_3", "--epochs", "2", "--device", "cpu"]
    with (shared / "trained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (out / "report.md").exists():  # report.md is written last
            assert main([*options, "--data", str(subset), "--out", str(out)]) == 0
    return out
