"""Doubt: out-of-distribution detection by a head that is fitted to the trained network's features, and its threshold.

The network and its accuracy do not change. The head separates training images, some of them warped, from synthetic
non-digits: scribbles, glyphs, shapes, letters and others (outlier exposure: Hendrycks, Mazeika & Dietterich, "Deep
Anomaly Detection with Outlier Exposure", 2019). As in MNIST, the non-digits' ink is scaled to fit 20×20 pixels, and its
centre of mass is in the middle. docs/doubt.md has the results, also for kinds not used for fitting.
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Generator, Tensor, nn

from model.classifier import (
    DigitClassifier,
    DoubtHead,
    Features,
    Outputs,
    logits_and_features,
    normalise,
    predict,
    scale,
)
from model.contract import SIDE, Doubt
from model.networks import parameter_count
from train.augment import Warp
from train.data import Data, Split
from train.drawn_digits import BOX, centred, draw_strokes, segments_of

DOUBTED = 0.01  # fraction of the validation images that may be doubted
SEED = 14
DIGITS_PER_NONDIGIT = 12  # for fitting: training images per non-digit of a kind with weight 1
# The kinds that are more like digits are drawn more often; the others have the weight 0.5.
WEIGHTS = {"scribbles": 3.0, "letters": 2.0, "glyphs": 1.0, "pairs of digits": 1.0}
DIGITS_PER_MEASURED = 60  # for measuring: training images per non-digit of each kind
WARP = Warp(degrees=6, pixels=0.5, scale=0.05, shear=0.1, elastic=0.4)
WARPED = 3  # one of three training images is warped
BATCH_SIZE, EPOCHS, LEARNING_RATE = 1_024, 60, 0.03  # BATCH_SIZE digits and as many non-digits per training step
DIGIT_WEIGHT = 6.0  # weight of the digits' loss, because few of them may be doubted
CHUNK = 100  # non-digits drawn at once
SAMPLES = 3  # per output pixel along each axis, when an image is scaled
# Letters that do not look like a digit: without I, O, S, Z, b, g, l, q, o, s, z.
LETTERS = "ABCDEFGHJKLMNPQRTUVWXYacdefhijkmnprtuvwxy"
# Shipped with matplotlib.
FONTS = ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Italic")
GLYPH = 96  # pixels: side of a letter's image

LogitsAndFeatures = tuple[Tensor, Features]  # as from model.classifier.logits_and_features


@torch.random.fork_rng(devices=[])  # only the CPU's generator is used; the default warns if there are several GPUs
def fit(network: nn.Module, train: Split) -> DoubtHead:
    """Fit a doubt head for `network` to its training images, on the CPU. `network` does not change.

    This is logistic regression on balanced batches of digits and non-digits.
    """
    torch.manual_seed(SEED)
    upright, warped = train.images[len(train) // WARPED :], train.images[: len(train) // WARPED]
    digits = _concatenate([extract_features(network, upright), extract_features(network, warped, WARP)])
    drawn = []
    for number, kind in enumerate(KINDS):
        count = max(1, round(WEIGHTS.get(kind, 0.5) * (len(train) / DIGITS_PER_NONDIGIT)))
        drawn.append(extract_features(network, draw(kind, count, train, SEED + number)))
    others = _concatenate(drawn)
    # Fit to standardised features. At the end, the standardisation is merged into the weights.
    _, everything = _concatenate([digits, others])
    means = [part.mean(dim=0) for part in everything]
    deviations = [part.std(dim=0) + 1e-3 for part in everything]
    classes = []
    for logits, features in (digits, others):
        detected, shared = ((part - mean) / by for part, mean, by in zip(features, means, deviations, strict=True))
        classes.append((detected, shared, torch.softmax(logits, dim=1)))
    head = DoubtHead(*map(len, means))
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    steps = max(10, EPOCHS * len(digits[0]) // BATCH_SIZE)
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        of_digits, of_others = (
            head((detected[chosen], shared[chosen]), probabilities[chosen])
            for detected, shared, probabilities in classes
            for chosen in [torch.randint(len(probabilities), (BATCH_SIZE,))]
        )
        loss = DIGIT_WEIGHT * F.softplus(of_digits).mean() + F.softplus(-of_others).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        for layer, mean, deviation in zip((head.detectors, head.shared), means, deviations, strict=True):
            layer.weight.div_(deviation)
            # head.shared has no bias. The probabilities sum to 1, so the detectors' biases can hold its offset, too.
            head.detectors.bias.sub_(layer.weight @ mean)
    return head.eval()


def measure(classifier: DigitClassifier, data: Data, validation: Outputs, test: Outputs) -> Doubt:
    """Choose the threshold on the validation images, and measure the fractions doubted.

    `validation` and `test` are the outputs of `classifier` on these sets of `data`.
    """
    threshold = choose_threshold(validation[2])
    count = max(1, len(data.train) // DIGITS_PER_MEASURED)

    def doubted(outputs: Outputs) -> float:
        return float(np.mean(outputs[2] > threshold))

    drawn = {kind: draw(kind, count, data.validation, number) for number, kind in enumerate(KINDS)}
    caught = {kind: doubted(predict(classifier, images)) for kind, images in drawn.items()}
    return Doubt(parameter_count(classifier.doubt), threshold, doubted(validation), doubted(test), caught)


def choose_threshold(doubts: NDArray[np.float32]) -> float:
    """Return the threshold that the fraction DOUBTED of `doubts` exceeds: the mean of the two doubts next to it."""
    ordered = np.sort(doubts)[::-1]
    above = int(DOUBTED * len(ordered))
    return float(ordered[max(0, above - 1) : above + 1].mean())


@torch.inference_mode()
def extract_features(network: nn.Module, images: Tensor, warp: Warp | None = None) -> LogitsAndFeatures:
    """Return the logits and the doubt head's features of `images`, uint8 [N, 28, 28], after `warp` if it is given."""
    batches = (scale(batch) for batch in images.cpu().split(500))
    return _concatenate([logits_and_features(network, normalise(warp(batch) if warp else batch)) for batch in batches])


def _concatenate(parts: list[LogitsAndFeatures]) -> LogitsAndFeatures:
    detected, shared = (torch.cat(features) for features in zip(*(features for _, features in parts), strict=True))
    return torch.cat([logits for logits, _ in parts]), (detected, shared)


def draw(kind: str, count: int, split: Split, seed: int) -> Tensor:
    """Draw `count` images of a `kind` of KINDS, uint8 [count, 28, 28]. Some kinds are made of the digits of `split`."""
    random = torch.Generator().manual_seed(seed)
    sizes = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
    return centred(torch.cat([KINDS[kind](size, split, random) for size in sizes]))


def scribbles(count: int, _: Split, random: Generator) -> Tensor:
    """Draw one to four smooth or angular strokes, connected or separate."""
    strokes = 4
    controls = torch.rand(count, strokes, 4, 2, generator=random)
    chained = _chance(0.5, (count, strokes - 1, 1), random)
    controls[:, 1:, 0] = torch.where(chained, controls[:, :-1, 3], controls[:, 1:, 0])
    straight = _chance(0.35, (count, 1, 1, 1), random)
    t = torch.linspace(0, 1, 9)
    bezier = torch.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])  # [4, 9]
    # Weights of the four points in three straight lines through them: [4, 9].
    lines = (1 - (torch.linspace(0, 3, 9) - torch.arange(4)[:, None]).abs()).clip(0)
    angular, smooth = (torch.einsum("nskd,kt->nstd", controls, weights) for weights in (lines, bezier))
    return _some_strokes(torch.where(straight, angular, smooth), 1, random)


def glyphs(count: int, _: Split, random: Generator) -> Tensor:
    """Draw two to five straight or curved strokes between the nodes of a 3×3 lattice, similar to letters and signs."""
    strokes = 5
    start = torch.randint(0, 9, (count, strokes), generator=random)
    step = torch.randint(1, 9, (count, strokes), generator=random)
    for number in range(1, strokes):
        end = (start[:, number - 1] + step[:, number - 1]) % 9
        joined = _chance(0.6, (count,), random)
        start[:, number] = torch.where(joined, end, start[:, number])
    nodes = torch.stack([torch.arange(9) % 3, torch.arange(9) // 3], 1) / 2.0
    ends = torch.stack([nodes[start], nodes[(start + step) % 9]], dim=2)
    ends = ends + 0.06 * torch.randn(ends.shape, generator=random)
    along = ends[:, :, 1] - ends[:, :, 0]
    bend = torch.randn(count, strokes, 1, generator=random) * _chance(0.35, (count, strokes, 1), random) * 0.5
    middle = ends.mean(dim=2) + bend * torch.stack([-along[..., 1], along[..., 0]], dim=2)
    t = torch.linspace(0, 1, 6)[:, None]
    a, b, c = (point.unsqueeze(2) for point in (ends[:, :, 0], middle, ends[:, :, 1]))
    paths = (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c
    return _some_strokes(paths * (0.5 + 0.7 * torch.rand(count, 1, 1, 2, generator=random)), 2, random)


def shapes(count: int, _: Split, random: Generator) -> Tensor:
    """Draw polygons with three to six corners, outlined or filled, and crosses."""
    corners = torch.randint(3, 7, (count, 1), generator=random)
    number = torch.arange(7).expand(count, 7) % corners
    irregular = 0.5 * _chance(0.5, (count, 1), random) * torch.rand(count, 6, generator=random)
    turn = number + torch.gather(irregular, 1, number)
    angle = 2 * math.pi * (turn / corners + torch.rand(count, 1, generator=random))
    polygon = _unit(angle) * (0.6 + 0.4 * torch.rand(count, 1, 2, generator=random))
    crosses = _chance(0.25, (count, 1, 1, 1), random)
    cross = torch.rand(count, 1, generator=random) * math.pi + torch.tensor([0, math.pi / 2, 0, math.pi / 2, 0, 0])
    arms = torch.stack([-_unit(cross), _unit(cross)], dim=2)
    segments = torch.where(crosses, arms, segments_of(polygon.unsqueeze(1)))
    return draw_strokes(segments, random, filled=~crosses[:, 0, 0, 0] & _chance(0.25, (count,), random))


def blots(count: int, _: Split, random: Generator) -> Tensor:
    """Draw smooth noise above a threshold, mostly within a circle."""
    cells = int(torch.randint(3, 9, (), generator=random))
    noise = torch.randn(count, 1, cells, cells, generator=random)
    value = F.interpolate(noise, size=(40, 40), mode="bicubic", align_corners=False)[:, 0]
    axis = torch.linspace(-1, 1, 40)
    value = value - (axis[:, None] ** 2 + axis**2) * 2 * torch.rand(count, 1, 1, generator=random)
    above = 0.4 + 1.6 * torch.rand(count, 1, 1, generator=random)  # distance of the threshold from the maximum
    return _fitted((4 * (value - value.amax(dim=(1, 2), keepdim=True) + above)).clip(0, 1))


def blocks(count: int, _: Split, random: Generator) -> Tensor:
    """Draw random patterns of 3×3 to 8×8 blocks."""
    cells = int(torch.randint(3, 9, (), generator=random))
    share = 0.3 + 0.4 * torch.rand(count, 1, 1, generator=random)
    pattern = (torch.rand(count, cells, cells, generator=random) < share).float()
    pattern[:, cells // 2, cells // 2] = 1  # no image is blank
    return _fitted(F.interpolate(pattern[:, None], size=(48, 48), mode="nearest")[:, 0])


def letters(count: int, _: Split, random: Generator) -> Tensor:
    """Draw printed letters, slightly rotated, slanted and stretched."""
    masks = _letter_masks()
    chosen = masks[torch.randint(0, len(masks), (count,), generator=random)].float()
    draws = torch.rand(count, 4, generator=random) * 2 - 1
    angle, slant, x, y = (draws * torch.tensor([0.2, 0.25, 0.25, 0.15])).unbind(dim=1)
    cos, sin = angle.cos(), angle.sin()
    maps = [cos * (1 + x), (slant - sin) * (1 + y), sin * (1 + x), cos * (1 + y)]
    return _mapped(chosen, [1.3 * row for row in maps])


@cache
def _letter_masks() -> Tensor:
    """Return every letter of every font in two stroke widths, uint8 [N, GLYPH, GLYPH] of 0 and 1."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    masks = []
    for name in FONTS:
        font = ImageFont.truetype(folder / f"{name}.ttf", round(0.8 * GLYPH))
        for letter in LETTERS:
            image = Image.new("L", (GLYPH, GLYPH))
            ImageDraw.Draw(image).text((GLYPH / 2, GLYPH / 2), letter, fill=255, anchor="mm", font=font)
            mask = torch.from_numpy(np.array(image) > 127).float()
            masks += [_thinned(mask, width * GLYPH * 0.6 / BOX) for width in (2.2, 2.8)]
    return torch.stack(masks).to(torch.uint8)


def _thinned(mask: Tensor, width: float) -> Tensor:
    """Erode the `mask`, [H, W], until its mean stroke width is at most `width` pixels, but never until it is empty."""
    for _ in range(GLYPH // 8):
        outline = sum(float(mask.diff(dim=axis).abs().sum()) for axis in (0, 1)) * math.pi / 4
        smaller = -F.max_pool2d(-mask[None], 3, stride=1, padding=1)[0]
        if 2 * float(mask.sum()) / outline <= width or not smaller.any():
            break
        mask = smaller
    return mask


def pairs_of_digits(count: int, split: Split, random: Generator) -> Tensor:
    """Draw two digits next to each other, touching or separate."""
    left, right = (_digits(count, split, random) for _ in range(2))
    shifts = torch.randint(11, 22, (count,), generator=random).tolist()
    moved = [F.pad(image, (shift, SIDE - shift)) for image, shift in zip(right, shifts, strict=True)]
    return _fitted(torch.maximum(F.pad(left, (0, SIDE)), torch.stack(moved)))


def turned_digits(count: int, split: Split, random: Generator) -> Tensor:
    """Draw digits rotated by about 90°, without 0, which would still be a digit."""
    others = split.labels != 0
    digits = _digits(count, Split(split.images[others], split.labels[others]), random)
    quarter = torch.where(_chance(0.5, (count,), random), 1.0, -1.0)
    angle = quarter * math.pi / 2 + 0.4 * (torch.rand(count, generator=random) - 0.5)
    return _mapped(digits, [angle.cos(), -angle.sin(), angle.sin(), angle.cos()])


KINDS: dict[str, Callable[[int, Split, Generator], Tensor]] = {
    kind.__name__.replace("_", " "): kind
    for kind in (scribbles, glyphs, shapes, blots, blocks, letters, pairs_of_digits, turned_digits)
}


def _digits(count: int, split: Split, random: Generator) -> Tensor:
    """Return random digits of `split`, float32 [count, 28, 28] of 0–1."""
    return split.images[torch.randint(0, len(split), (count,), generator=random)].float() / 255


def _chance(probability: float, shape: tuple[int, ...], random: Generator) -> Tensor:
    """Return bools of `shape`, each true with `probability`."""
    return torch.rand(shape, generator=random) < probability


def _unit(angle: Tensor) -> Tensor:
    """Return the unit vectors, [N, K, 2], at the angles `angle`, [N, K], in radians."""
    return torch.stack([angle.cos(), angle.sin()], dim=2)


def _some_strokes(paths: Tensor, fewest: int, random: Generator) -> Tensor:
    """Draw the first n of each image's K `paths` of P points, [N, K, P, 2]. n is random, from `fewest` to K."""
    strokes = torch.randint(fewest, paths.shape[1] + 1, (len(paths), 1), generator=random)
    segments = segments_of(paths)
    kept = torch.arange(segments.shape[1]) < segments.shape[1] // strokes.max() * strokes
    # The other segments become copies of the first one, so that they add nothing.
    return draw_strokes(torch.where(kept[:, :, None, None], segments, segments[:, :1]), random)


def _mapped(images: Tensor, maps: list[Tensor]) -> Tensor:
    """Resample `images`, float [N, H, H], by matrices a, b, c, d, each [N], from output to input; scale ink to BOX."""
    theta = F.pad(torch.stack(maps, dim=1).view(-1, 2, 2), (0, 1))  # no shift
    grid = F.affine_grid(theta, [len(images), 1, *images.shape[1:]], align_corners=False)
    return _fitted(F.grid_sample(images[:, None], grid, align_corners=False)[:, 0])


def _fitted(images: Tensor) -> Tensor:
    """Scale the bounding box of each image's ink, float [N, H, W], to fit into BOX × BOX: [N, 28, 28] of 0–1."""
    middles, lengths = [], []
    for axis in (2, 1):  # x, y
        used = (images > 0.2).any(dim=3 - axis).int()
        first, end = used.argmax(dim=1), used.shape[1] - used.flip(1).argmax(dim=1)
        middles.append((first + end) / 2)
        lengths.append(end - first)
    # Sample SAMPLES × SAMPLES positions per output pixel. grid_sample expects x and y from -1 to 1 inside the image.
    scale = torch.maximum(*lengths).float() / BOX
    offsets = (torch.arange(SIDE * SAMPLES) + 0.5) / SAMPLES - SIDE / 2
    x, y = (
        2 * (middle[:, None] + offsets * scale[:, None]) / side - 1
        for middle, side in zip(middles, images.shape[:0:-1], strict=True)
    )
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=3)
    sampled = F.grid_sample(images[:, None], grid, align_corners=False)
    margin = (SIDE - BOX) // 2
    inside = F.avg_pool2d(sampled, SAMPLES)[:, 0, margin:-margin, margin:-margin]
    result = F.pad(inside, (margin, margin, margin, margin))  # cuts off faint ink outside the bounding box
    return result / result.amax(dim=(1, 2), keepdim=True).clip(1e-3)
