"""The data set: read four IDX files, check their SHA-256, and split them into training, validation and test set.

Reads any data set in MNIST's format, for example Fashion-MNIST, KMNIST or QMNIST.
"""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.contract import CLASSES, IMAGE
from train import paths
from train.errors import DataError
from train.files import read_bytes, sha256

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
SUMS = "SHA256SUMS"
VALIDATION_DIVISOR = 12  # one of 12 training images: 5,000 of MNIST's 60,000
VALIDATION_SEED = 20_120  # separate, so that every run and every seed holds out the same images


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
    """A data set: its name, the SHA-256 of each unpacked file, and its three splits."""

    name: str
    sha256: dict[str, str]
    train: Split
    validation: Split
    test: Split


def load(directory: Path = paths.DATA) -> Data:
    """Read the four IDX files, gzipped or plain, in `directory`.

    If the folder has a SHA256SUMS (of the unpacked files), each file is checked against it. Raises DataError with the
    file, the expected and the found if a file is missing, damaged or altered.
    """
    expected = _expected_hashes(directory / SUMS)
    files, contents = zip(*(_read(directory, name, expected.get(name)) for name in FILES), strict=True)
    tensors = [_parse(path, content) for path, content in zip(files, contents, strict=True)]
    training, test = (_split(files[i], files[i + 1], tensors[i], tensors[i + 1]) for i in (0, 2))
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(VALIDATION_SEED))
    held_out, kept = order.tensor_split([len(training) // VALIDATION_DIVISOR])
    return Data(
        name=directory.resolve().name,
        sha256={name: sha256(content) for name, content in zip(FILES, contents, strict=True)},
        train=Split(training.images[kept], training.labels[kept]),
        validation=Split(training.images[held_out], training.labels[held_out]),
        test=test,
    )


def _expected_hashes(path: Path) -> dict[str, str]:
    """Return the SHA-256 of each unpacked file, by name, from SHA256SUMS; empty if there is no such file."""
    if not path.is_file():
        return {}
    lines = (line.split() for line in read_bytes(path).decode(errors="replace").splitlines())
    hashes = {line[1].removeprefix("*").removeprefix("./"): line[0].lower() for line in lines if len(line) == 2}
    for name in FILES:
        if name not in hashes:
            raise DataError(f"{path}: expected a line for {name}, found lines for {', '.join(hashes) or 'no file'}")
    return hashes


def _read(directory: Path, name: str, expected: str | None) -> tuple[Path, bytes]:
    """Return the path and the unpacked content of the file `name`, whose SHA-256 is `expected` unless that is None."""
    of = f" of SHA-256 {expected} (unpacked)" if expected else ""
    packed, plain = directory / f"{name}.gz", directory / name
    if not (packed.is_file() or plain.is_file()):
        raise DataError(f"{packed}: expected the file{of}, or {name} unpacked; found neither")
    path = packed if packed.is_file() else plain
    content = read_bytes(path)
    if path == packed:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            found = f"{len(content):,} bytes that are not: {error}"
            raise DataError(f"{path}: expected a whole gzip file{of}, found {found}") from error
    if expected and (found := sha256(content)) != expected:
        raise DataError(f"{path}: expected SHA-256 {expected} (unpacked), found {found}, {len(content):,} bytes")
    return path, content


def _parse(path: Path, content: bytes) -> Tensor:
    """Parse an unpacked IDX file: the bytes 0, 0, 8 (uint8), the number of axes, the length of each, the values."""
    axes = content[3] if content.startswith(b"\0\0\x08") and len(content) > 3 else 0
    start = 4 + 4 * axes
    shape = [int.from_bytes(content[i : i + 4]) for i in range(4, start, 4)]
    if not axes or not 0 < math.prod(shape) == len(content) - start:
        begin = content[:16].hex(" ") or "nothing"
        raise DataError(f"{path}: expected IDX of uint8, found {len(content):,} bytes unpacked that begin with {begin}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)


def _split(images_path: Path, labels_path: Path, images: Tensor, labels: Tensor) -> Split:
    """Combine images and labels into a split. Raises DataError if they do not fit."""
    for path, tensor, shape in ((images_path, images, IMAGE.shape), (labels_path, labels, ())):
        if tensor.shape[1:] != shape:
            raise DataError(f"{path}: expected shape {['N', *shape]}, found {list(tensor.shape)}")
    if len(images) != len(labels):
        raise DataError(f"{labels_path}: expected {len(images)} labels, one per image, found {len(labels)}")
    if len(labels) < VALIDATION_DIVISOR:
        raise DataError(f"{images_path}: expected {VALIDATION_DIVISOR} or more images, found {len(labels)}")
    if labels.max() >= CLASSES:
        raise DataError(f"{labels_path}: expected labels 0–{CLASSES - 1}, found {int(labels.max())}")
    return Split(images, labels.long())
