"""Read the data set: check the SHA-256 of its four IDX files, and split it into training, validation and test set.

Any data set in MNIST's format can be used, for example Fashion-MNIST or KMNIST.
"""

import gzip
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import MNIST

from model.contract import CLASSES, IMAGE
from train import TrainError, paths
from train.files import read_bytes, sha256, write_bytes

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SUMS = "SHA256SUMS"
RAW = Path("MNIST", "raw")  # where torchvision keeps the files
VALIDATION_DIVISOR = 12  # one of 12 training images is held out: 5,000 of MNIST's 60,000
VALIDATION_SEED = 20_120  # independent of the training's seed: every run holds out the same images


@dataclass(frozen=True)
class Split:
    """Images, uint8 [N, 28, 28], and their labels, int64 [N]."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        """Return the split on `device`."""
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Data:
    """A data set: its folder, the SHA-256 of each unpacked file, and its three splits."""

    directory: Path
    sha256: dict[str, str]
    train: Split
    validation: Split
    test: Split

    @property
    def name(self) -> str:
        """Return the name of the folder."""
        return self.directory.resolve().name

    def summary(self) -> dict[str, Any]:
        """Return the name and the number of images of each split."""
        return {"name": self.name, **{part: len(getattr(self, part)) for part in ("train", "validation", "test")}}


def load(directory: Path = paths.DATA) -> Data:
    """Read four IDX files, gzipped or plain, from `directory`, or from its subfolder MNIST/raw if that exists.

    If the folder has a file SHA256SUMS, each unpacked file must match its SHA-256 there. Raises TrainError if a file is
    missing, damaged or altered, or if the temporary folder has too little space for the unpacked files.
    """
    folder = directory / RAW if (directory / RAW).is_dir() else directory
    expected = _expected_hashes(folder / SUMS)
    hashes = {}
    with tempfile.TemporaryDirectory() as root:
        for name in FILES:
            content = _unpacked(folder, name, expected.get(name))
            hashes[name] = sha256(content)
            write_bytes(Path(root, RAW, name), content)  # torchvision reads the bytes that were checked
        training, test = (_split(root, folder, train=train) for train in (True, False))
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(VALIDATION_SEED))
    held_out, kept = order.tensor_split([len(training) // VALIDATION_DIVISOR])
    return Data(
        directory,
        hashes,
        train=Split(training.images[kept], training.labels[kept]),
        validation=Split(training.images[held_out], training.labels[held_out]),
        test=test,
    )


def _expected_hashes(path: Path) -> dict[str, str]:
    """Return the SHA-256 of each unpacked file, by name, as stated in SHA256SUMS, or {} without that file."""
    if not path.is_file():
        return {}
    lines = (line.split() for line in read_bytes(path).decode(errors="replace").splitlines())
    hashes = {line[1].lstrip("*./"): line[0].lower() for line in lines if len(line) == 2}
    if missing := [name for name in FILES if name not in hashes]:
        raise TrainError(f"{path}: expected a line for {missing[0]}, found lines for {', '.join(hashes) or 'no file'}")
    return hashes


def _unpacked(folder: Path, name: str, expected: str | None) -> bytes:
    """Return the unpacked content of the file `name`. If `expected` is given, it must be the SHA-256 of the content."""
    packed, plain = folder / f"{name}.gz", folder / name
    path = packed if packed.is_file() or not plain.is_file() else plain
    try:
        content = read_bytes(path)
        content = gzip.decompress(content) if path == packed else content
    except (OSError, EOFError, zlib.error) as error:
        found = f"{len(content):,} bytes with the error: {error}"
        raise TrainError(f"{path}: expected a whole gzip file, found {found}") from error
    if expected and (found := sha256(content)) != expected:
        raise TrainError(f"{path}: expected SHA-256 {expected} when unpacked, found {found} ({len(content):,} bytes)")
    return content


def _split(root: str, folder: Path, *, train: bool) -> Split:
    """Read the training or the test set in `root` with torchvision. TrainError names the original files in `folder`."""
    images_path, labels_path = (folder / name for name in (FILES[:2] if train else FILES[2:]))
    try:
        found = MNIST(root, train)
    except (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        both = f"{images_path}, {labels_path.name}"
        raise TrainError(f"{both}: expected images and labels in IDX format, uint8; torchvision: {error!r}") from error
    images, labels = found.data, found.targets
    if images.shape[1:] != IMAGE.shape:
        raise TrainError(f"{images_path}: expected shape {['N', *IMAGE.shape]}, found {list(images.shape)}")
    if len(images) != len(labels):
        raise TrainError(f"{labels_path}: expected {len(images)} labels, one per image, found {len(labels)}")
    if labels.max() >= CLASSES:
        raise TrainError(f"{labels_path}: expected labels 0–{CLASSES - 1}, found {int(labels.max())}")
    return Split(images, labels)
