"""Out-of-distribution detection: the share of non-digits, and of digits, that are doubtful by the output `doubt`.

Pictures are preprocessed as in the service. Three methods that are not fitted to non-digits are the baselines. The
threshold of each method marks 1 % of the validation images. Writes docs/doubt.md, .json and .png.
"""

import argparse
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as in the service

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from benchmarks import pages
from benchmarks.forms import FORMS
from benchmarks.nondigits import FITTED, HELD_OUT, LIKE_DIGITS, Draw, Picture
from benchmarks.pictures import load_sources, render_all
from model.classifier import DigitClassifier
from model.contract import MANIFEST, WEIGHTS, parse_manifest
from model.networks import parameter_count
from serve.pictures.decode import decode
from serve.pictures.preprocess import ImageError, to_mnist
from train import doubt, paths
from train.data import Data, Split, load
from train.export import load_classifier
from train.markdown import table
from train.progression import PROGRESSION

SEED = 3
MAHALANOBIS_IMAGES = 20_000  # training images for its means and covariance

Scores = dict[str, NDArray[np.float32]]  # by method; larger means less like a digit


def main() -> None:
    """Measure every kind and form; write the page and its picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.doubt", description=__doc__, allow_abbrev=False)
    parser.add_argument("--release", type=Path, default=paths.RELEASE, help="(default: model/release)")
    parser.add_argument("--images", type=int, default=2_000, help="of each kind (default: 2000)")
    parser.add_argument("--digits", type=int, default=300, help="of each form of docs/pictures.md (default: 300)")
    parser.add_argument("--out", type=Path, default=paths.ROOT / "docs", help="the folder written to (default: docs)")
    options = parser.parse_args()
    data = load()
    classifier, model = _classifier(options.release)
    score = _methods(classifier, data)
    thresholds = {name: doubt.choose_threshold(values) for name, values in score(data.validation.images).items()}

    examples: dict[str, list[Image.Image]] = {}

    def doubted(images: Tensor | Picture) -> dict[str, float]:
        found = score(torch.as_tensor(images))
        return {name: 100 * float(np.mean(values > thresholds[name])) for name, values in found.items()}

    kinds, forms = {}, {}
    for number, (name, draw) in enumerate({**FITTED, **HELD_OUT, **LIKE_DIGITS}.items()):
        images, refused = _drawn(draw, np.random.default_rng([SEED, number]), data.test, options.images)
        kinds[name] = {"refused": refused, "doubtful": doubted(images)}
        examples[name] = [ImageOps.invert(Image.fromarray(image)) for image in images[:8]]
    for name, (numbers, digits, _labels) in load_sources(False, options.digits).items():
        forms[FORMS[name].title] = doubted(_decoded(render_all(name, numbers, digits)))["doubt"]
    values = {
        "command": f"python -m benchmarks.doubt --images {options.images} --digits {options.digits}",
        "model": model,
        "images": options.images,
        "kinds": kinds,
        "test": doubted(data.test.images),
        "forms": forms,
    }
    found = figures(values)
    pages.write(options.out, "doubt.md", "doubt", values, found, doubt=pages.contact_sheet(examples))
    print(found["shares"])


def _classifier(release: Path) -> tuple[DigitClassifier, str]:
    """Return the classifier of a `release` and its name in words."""
    manifest = parse_manifest((release / MANIFEST).read_bytes())
    network = PROGRESSION[manifest.model].network()
    classifier = load_classifier(network, (release / WEIGHTS).read_bytes(), release)
    name = f"{manifest.model}, {manifest.onnx.sha256[:12]}"
    assert classifier.doubt
    parameters = parameter_count(network), parameter_count(classifier.doubt)
    return classifier, f"{name} ({parameters[0]:,} parameters and {parameters[1]} for doubt)"


def _methods(classifier: DigitClassifier, data: Data) -> Callable[[Tensor], Scores]:
    """Return a function from images, uint8 [N, 28, 28], to every method's scores."""
    logits, (features, _) = doubt.extract_features(classifier.network, data.train.images[:MAHALANOBIS_IMAGES])
    digits = logits.argmax(dim=1)
    means = torch.stack([features[digits == digit].mean(dim=0) for digit in range(10)])
    covariance = (features - means[digits]).T.cov()
    whiten = torch.linalg.cholesky(
        torch.linalg.inv(covariance + 1e-3 * covariance.trace() / len(covariance) * torch.eye(len(covariance)))
    )

    def score(images: Tensor) -> Scores:
        logits, (features, shared) = doubt.extract_features(classifier.network, images)
        assert classifier.doubt
        with torch.inference_mode():
            scores = {
                "highest probability": -torch.softmax(logits, dim=1).amax(dim=1),
                "logsumexp of the logits": -torch.logsumexp(logits, dim=1),
                "Mahalanobis distance": torch.cdist(features @ whiten, means @ whiten).amin(dim=1),
                "doubt": classifier.doubt((features, shared), torch.softmax(logits, dim=1)),
            }
        return {name: values.numpy() for name, values in scores.items()}

    return score


def _drawn(draw: Draw, random: np.random.Generator, split: Split, count: int) -> tuple[Picture, int]:
    """Draw and preprocess pictures until `count` are accepted; return them, [N, 28, 28], and how many were refused."""
    digits = split.images.numpy(), split.labels.numpy()
    images: list[Picture] = []
    refused = 0
    while len(images) < count:
        try:
            images.append(to_mnist(draw(random, digits)))
        except ImageError:
            refused += 1
    return np.stack(images), refused


def _decoded(contents: list[bytes]) -> Picture:
    images = []
    for content in contents:
        with suppress(ImageError):  # refused pictures are counted in docs/pictures.md
            images.append(decode(content))
    return np.stack(images)


def figures(values: dict[str, Any]) -> dict[str, str]:
    """Return the figures of docs/doubt.md from the content of docs/doubt.json."""
    kinds, forms, methods = values["kinds"], values["forms"], list(values["test"])

    def row(name: str, shares: dict[str, float], refused: str = "") -> list[str]:
        cells = (f"**{shares[one]:.1f} %**" if one == "doubt" else f"{shares[one]:.1f} %" for one in methods)
        return [name, *cells, refused]

    def title(name: str) -> list[str]:
        return [f"**{name}**", *[""] * (len(methods) + 1)]

    def rows(names: dict[str, Draw]) -> list[list[str]]:
        return [row(name, kinds[name]["doubtful"], f"{kinds[name]['refused']:,}") for name in names]

    def mean(name: str, names: dict[str, Draw]) -> list[str]:
        return row(name, {one: float(np.mean([kinds[kind]["doubtful"][one] for kind in names])) for one in methods})

    lines = [
        *rows(FITTED),
        mean("*mean*", FITTED),
        title("held out: nothing was fitted to these"),
        *rows(HELD_OUT),
        mean("*mean, held out*", HELD_OUT),
        title("letters that look like handwritten digits"),
        *rows(LIKE_DIGITS),
        title("digits"),
        row("MNIST's test images", values["test"]),
    ]
    largest = (f"“{name}” ({forms[name]:.1f} %)" for name in sorted(forms, key=lambda name: -forms[name])[:3])
    sentence = (
        f"The model: {values['model']}. Of digits in the forms of [pictures.md](pictures.md), preprocessed by the "
        f"service, {np.mean(list(forms.values())):.1f} % are doubtful on average; the largest shares: "
        f"{', '.join(largest)}. Written by `{values['command']}` (`make doubt`)."
    )
    return {
        "shares": table([f"{values['images']:,} pictures per kind", *methods, "refused before"], lines),
        "model": sentence,
    }


if __name__ == "__main__":
    main()
