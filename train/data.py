"""The data set: four checksummed IDX files in, three splits of tensors out.

The files are unpacked once, into a cache that is named by their content, and read there by torchvision.
Any set of MNIST's form (Fashion-MNIST, KMNIST, QMNIST) is read the same way.
"""

import os
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import MNIST

from train import paths
from train.errors import DataError
from train.files import sha256

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
SUMS = "SHA256SUMS"
VALIDATION_SHARE = 12  # one training image in twelve: 5,000 of MNIST's 60,000
VALIDATION_SEED = 20_120  # of its own, so that every run and every seed holds out the same images


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

    def to(self, device: torch.device) -> "Data":
        """Return the data set with its splits on `device`."""
        splits = (split.to(device) for split in (self.train, self.validation, self.test))
        return Data(self.name, self.sha256, *splits)


def load(directory: Path = paths.DATA) -> Data:
    """Read the four IDX files, gzipped or plain, in `directory`.

    Where the folder has a SHA256SUMS (of the unpacked files), each file is checked against it when unpacked.
    Raises DataError, naming the file, the expected and the found, where one is missing, damaged or altered.
    """
    root, hashes = _unpacked(directory)
    training, test = (_read(root, directory, train) for train in (True, False))
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(VALIDATION_SEED))
    held_out, kept = order.tensor_split([len(training) // VALIDATION_SHARE])
    return Data(
        name=directory.resolve().name,
        sha256=hashes,
        train=Split(training.images[kept], training.labels[kept]),
        validation=Split(training.images[held_out], training.labels[held_out]),
        test=test,
    )


def _read(root: Path, directory: Path, train: bool) -> Split:
    part = "training" if train else "test"
    try:
        dataset = MNIST(str(root), train=train)
    except (ValueError, AssertionError, IndexError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(f"{directory}: expected the {part} files to be IDX, found: {error}") from error
    images, labels = dataset.data, dataset.targets
    if images.dtype != torch.uint8 or images.shape != (len(labels), 28, 28):
        raise DataError(
            f"{directory}: expected {len(labels)} {part} images (one a label) of 28×28 pixels, uint8; "
            f"found {list(images.shape)}, {images.dtype}"
        )
    if len(labels) < VALIDATION_SHARE:
        raise DataError(f"{directory}: expected {VALIDATION_SHARE} or more {part} images, found {len(labels)}")
    if not 0 <= int(labels.min()) <= int(labels.max()) <= 9:
        raise DataError(f"{directory}: expected {part} labels 0–9, found {int(labels.min())}–{int(labels.max())}")
    return Split(images, labels)


def _unpacked(directory: Path) -> tuple[Path, dict[str, str]]:
    """Return a folder that holds the files unpacked, as torchvision's MNIST expects them, and their SHA-256."""
    expected = _expected_hashes(directory)
    packed = {name: _packed(directory, name, expected.get(name)) for name in FILES}
    key = sha256("".join(sha256(path.read_bytes()) for path in packed.values()).encode() + repr(expected).encode())
    cache = _cache()
    root = cache / key[:16]
    if (hashes := _cached_hashes(root)) is not None:
        return root, hashes
    contents = {name: _unpack(path, expected.get(name)) for name, path in packed.items()}
    hashes = {name: sha256(content) for name, content in contents.items()}
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as staging:
            whole = Path(staging) / root.name
            (whole / "MNIST" / "raw").mkdir(parents=True)
            for name, content in contents.items():
                (whole / "MNIST" / "raw" / name).write_bytes(content)
            (whole / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in hashes.items()))
            if root.exists():  # damaged
                root.rename(Path(staging) / "damaged")
            whole.rename(root)
    except OSError as error:
        if _cached_hashes(root) != hashes:  # else another process was first, with the same content
            raise DataError(
                f"cannot unpack {directory} into {cache}: {error.strerror}; "
                "set XDG_CACHE_HOME to a folder that can be written"
            ) from error
    return root, hashes


def _cache() -> Path:
    """Return the folder of the unpacked files; a temporary one for a user without a home."""
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        base = Path(tempfile.gettempdir())
    return base / "mnist-progression"


def _cached_hashes(root: Path) -> dict[str, str] | None:
    """Return the SHA-256 of each cached file; None where one is missing or is not what was unpacked."""
    try:
        hashes = {name: sha256((root / "MNIST" / "raw" / name).read_bytes()) for name in FILES}
        return hashes if hashes == _stated_hashes(root / SUMS) else None
    except OSError:
        return None


def _stated_hashes(path: Path) -> dict[str, str]:
    lines = (line.split() for line in path.read_text(errors="replace").splitlines())
    return {line[1].lstrip("*"): line[0].lower() for line in lines if len(line) == 2}


def _expected_hashes(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of each unpacked file, by name; empty where the folder does not state them."""
    path = directory / SUMS
    if not path.is_file():
        return {}
    hashes = _stated_hashes(path)
    for name in FILES:
        if name not in hashes:
            raise DataError(f"{path}: expected a line for {name}, found none")
    return hashes


def _packed(directory: Path, name: str, expected: str | None) -> Path:
    for path in (directory / f"{name}.gz", directory / name):
        if path.is_file():
            return path
    hint = f" of SHA-256 {expected} (unpacked)" if expected else ""
    raise DataError(f"{directory / name}.gz: expected the file{hint}, or {name} unpacked; found neither")


def _unpack(path: Path, expected: str | None) -> bytes:
    content, whole = path.read_bytes(), True
    if path.suffix == ".gz":
        content, whole = _gunzip(content)
    found = sha256(content)
    if expected and found != expected:
        raise DataError(
            f"{path}: expected SHA-256 {expected} (unpacked), found {found}, {len(content):,} bytes"
            + ("" if whole else ", with the gzip stream cut short or damaged")
        )
    if not whole:
        raise DataError(
            f"{path}: expected a whole gzip file, found one cut short or damaged after {len(content):,} bytes"
        )
    return content


def _gunzip(content: bytes) -> tuple[bytes, bool]:
    """Return what unpacks, and whether that is the whole."""
    stream, unpacked = zlib.decompressobj(wbits=31), bytearray()
    try:
        for start in range(0, len(content), 1 << 16):
            unpacked += stream.decompress(content[start : start + (1 << 16)])
    except zlib.error:
        return bytes(unpacked), False
    return bytes(unpacked), stream.eof
