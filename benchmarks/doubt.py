"""Measure how many non-digits, and how many digits, are doubtful by the output `doubt` (out-of-distribution detection).

Pictures are preprocessed as in the service. Three methods that are not fitted to non-digits are the baselines. The
threshold of each method is exceeded by 1 % of the validation images. Writes docs/doubt.md, .json and .png.
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
from benchmarks.nondigits import FITTED, HELD_OUT, LIKE_DIGITS, Picture
from benchmarks.pictures import load_sources, render_all
from model.classifier import DigitClassifier
from model.contract import MANIFEST, WEIGHTS, parse_manifest
from model.networks import parameter_count
from serve.pictures.decode import decode
from serve.pictures.preprocess import ImageError, to_mnist
from train import doubt
from train.data import Data, load
from train.export import load_classifier
from train.markdown import table
from train.paths import RELEASE
from train.progression import PROGRESSION

SEED = 3
MAHALANOBIS_IMAGES = 20_000  # number of training images for the means and covariance of the Mahalanobis distance


def main() -> None:
    """Measure every kind of non-digit and every form of docs/pictures.md; write docs/doubt.md and its picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.doubt", description=__doc__, allow_abbrev=False)
    parser.add_argument("--release", type=Path, default=RELEASE, help="(default: model/release)")
    parser.add_argument("--images", type=int, default=2_000, help="pictures per kind of non-digit (default: 2000)")
    parser.add_argument("--digits", type=int, default=300, help="digits per form of docs/pictures.md (default: 300)")
    parser.add_argument("--out", type=Path, default=pages.DOCS, help="output folder (default: docs)")
    options = parser.parse_args()
    manifest = parse_manifest((options.release / MANIFEST).read_bytes())
    network, data = PROGRESSION[manifest.model].network(), load()
    classifier = load_classifier(network, (options.release / WEIGHTS).read_bytes(), options.release)
    score = _methods(classifier, data)
    thresholds = {name: doubt.choose_threshold(values) for name, values in score(data.validation.images).items()}

    def doubted(images: Tensor | Picture) -> dict[str, float]:
        found = score(torch.as_tensor(images))
        return {name: 100 * float(np.mean(values > thresholds[name])) for name, values in found.items()}

    kinds, forms, examples = {}, {}, {}
    digits = data.test.images.numpy(), data.test.labels.numpy()
    for number, (name, draw) in enumerate({**FITTED, **HELD_OUT, **LIKE_DIGITS}.items()):
        random, images, drawn = np.random.default_rng([SEED, number]), [], 0
        while len(images) < options.images:
            drawn += 1
            with suppress(ImageError):
                images.append(to_mnist(draw(random, digits)))
        kinds[name] = {"refused": drawn - len(images), "doubtful": doubted(np.stack(images))}
        examples[name] = [ImageOps.invert(Image.fromarray(image)) for image in images[:8]]
    for name, (numbers, sample, _) in load_sources(False, options.digits).items():
        images = []
        for content in render_all(name, numbers, sample):
            with suppress(ImageError):  # refused pictures are left out here; docs/pictures.md counts them as wrong
                images.append(decode(content))
        forms[FORMS[name].title] = doubted(np.stack(images))["doubt"]
    parameters = f"{parameter_count(network):,} parameters and {parameter_count(classifier.doubt)} for doubt"
    values = {
        "command": f"python -m benchmarks.doubt --images {options.images} --digits {options.digits}",
        "model": f"{manifest.model}, {manifest.onnx.sha256[:12]} ({parameters})",
        "images": options.images,
        "kinds": kinds,
        "test": doubted(data.test.images),
        "forms": forms,
    }
    pages.write(options.out, "doubt.md", "doubt", values, figures(values), doubt=pages.contact_sheet(examples))


def _methods(classifier: DigitClassifier, data: Data) -> Callable[[Tensor], dict[str, NDArray[np.float32]]]:
    """Return a function from images, uint8 [N, 28, 28], to each method's scores, [N]. Larger: less like a digit."""
    logits, (features, _) = doubt.extract_features(classifier.network, data.train.images[:MAHALANOBIS_IMAGES])
    digits = logits.argmax(dim=1)
    means = torch.stack([features[digits == digit].mean(dim=0) for digit in range(10)])
    covariance = (features - means[digits]).T.cov()
    covariance += 1e-3 * covariance.trace() / len(covariance) * torch.eye(len(covariance))
    whiten = torch.linalg.cholesky(torch.linalg.inv(covariance))

    def score(images: Tensor) -> dict[str, NDArray[np.float32]]:
        logits, (features, shared) = doubt.extract_features(classifier.network, images)
        with torch.inference_mode():
            scores = {
                "highest probability": -torch.softmax(logits, dim=1).amax(dim=1),
                "logsumexp of the logits": -torch.logsumexp(logits, dim=1),
                "Mahalanobis distance": torch.cdist(features @ whiten, means @ whiten).amin(dim=1),
                "doubt": classifier.doubt((features, shared), torch.softmax(logits, dim=1)),
            }
        return {name: values.numpy() for name, values in scores.items()}

    return score


def figures(values: dict[str, Any]) -> dict[str, str]:
    """Return the figures of docs/doubt.md from the content of docs/doubt.json."""
    kinds, forms, methods = values["kinds"], values["forms"], list(values["test"])

    def row(name: str, shares: dict[str, float], refused: str = "") -> list[str]:
        cells = (f"**{shares[one]:.1f} %**" if one == "doubt" else f"{shares[one]:.1f} %" for one in methods)
        return [name, *cells, refused]

    lines = []
    for title, names in {
        "kinds that doubt was fitted to, drawn by other code": FITTED,
        "held-out kinds, not used for fitting": HELD_OUT,
        "letters that look like handwritten digits": LIKE_DIGITS,
    }.items():
        lines.append([f"**{title}**", *[""] * (len(methods) + 1)])
        lines += [row(name, kinds[name]["doubtful"], f"{kinds[name]['refused']:,}") for name in names]
        if len(names) > 1:
            means = {one: float(np.mean([kinds[name]["doubtful"][one] for name in names])) for one in methods}
            lines.append(row("*mean*", means))
    lines.append(row("**MNIST's test images**", values["test"]))
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
