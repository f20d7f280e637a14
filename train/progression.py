"""The progression: one experiment per model, with its network, target, expected result and training recipe."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Annotated

import msgspec
import torchinfo
from msgspec import Meta
from torch import nn

from model.contract import SIDE
from model.networks import Model_1, Model_2, Model_3
from train import TrainError
from train.augment import Warp

# The goal: this test accuracy at the last epoch with every seed, within these budgets.
TARGET_ACCURACY = 0.994
PARAMETER_BUDGET = 8_000
EPOCH_BUDGET = 15


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of a training: SGD with momentum on cross-entropy."""

    learning_rate: Annotated[float, Meta(ge=0)]  # with one_cycle: the highest learning rate
    batch_size: Annotated[int, Meta(ge=1)] = 64
    epochs: Annotated[int, Meta(ge=1)] = EPOCH_BUDGET
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    one_cycle: bool = False  # False: the learning rate is constant
    augmentation: Warp | None = None
    drawn_digits: Annotated[float, Meta(ge=0)] = 0.0  # drawn digits to add, as a fraction of the training images

    def __str__(self) -> str:
        epochs = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        momentum = f"{'Nesterov ' if self.nesterov else ''}momentum {self.momentum:g}"
        rate = f"learning rate {'one-cycle to ' if self.one_cycle else ''}{self.learning_rate:g}"
        parts = [f"{epochs} of SGD, {momentum}, {rate}, batch size {self.batch_size}"]
        if self.weight_decay:
            parts.append(f"weight decay {self.weight_decay:g}")
        parts.append(str(self.augmentation) if self.augmentation else "no augmentation")
        if self.drawn_digits:
            parts.append(f"{100 * self.drawn_digits:g} % drawn digits added")
        return "; ".join(parts)


@dataclass(frozen=True)
class Experiment:
    """One entry of the progression."""

    name: str
    network: Callable[[], nn.Module]
    target: tuple[str, ...]
    expectation: str
    recipe: Recipe
    reference: tuple[float, float] | None = None  # the reference's best training and test accuracy, in %

    def describe(self) -> str:
        """Return target, expectation, recipe and layer table, which are printed before a training."""
        targets = "\n  - ".join(["Target:", *self.target])
        expected = f"Expected: {self.expectation}\nRecipe: {self.recipe}"
        return f"\n--- Starting training for {self.name} ---\n{targets}\n{expected}\n{layer_table(self.network())}\n"


REFERENCE_RECIPE = Recipe(learning_rate=0.01)

PROGRESSION: dict[str, Experiment] = {
    entry.name: entry
    for entry in (
        Experiment(
            name="Model_1",
            network=Model_1,
            target=(
                "Set up the whole pipeline: data, network, training and test loop.",
                "Make a small network, with batch normalisation for fast and stable training.",
            ),
            expectation="about 99.2 % at best, over-fitting: training accuracy above test accuracy",
            recipe=REFERENCE_RECIPE,
            reference=(99.80, 99.20),
        ),
        Experiment(
            name="Model_2",
            network=Model_2,
            target=(
                "Stay below 8,000 parameters: global average pooling instead of the large last layer.",
                "Regularise with dropout, to close the gap between training and test accuracy.",
            ),
            expectation="about 99.3 % at best, no over-fitting, below the goal",
            recipe=REFERENCE_RECIPE,
            reference=(99.09, 99.36),
        ),
        Experiment(
            name="Model_3",
            network=Model_3,
            target=(
                "Reach 99.40 % at the last epoch with every seed.",
                "Use separable convolutions: they need fewer parameters, so more and wider layers fit the budget.",
                "Avoid aliasing: blur in the first pooling; use stride 1 in the second, and dilate the next layer.",
                "Rotate, shift, scale, shear and bend each digit, and make its strokes thicker or thinner.",
                "Add drawn digits, in styles that are rare in MNIST.",
                "Anneal the learning rate to zero (one cycle): the last epoch is the best, so no epoch is selected.",
            ),
            expectation="at least 99.5 % at the last epoch; lower in training, because augmented digits are harder",
            recipe=Recipe(
                learning_rate=0.08,
                nesterov=True,
                weight_decay=5e-4,
                one_cycle=True,
                augmentation=Warp(degrees=8, pixels=1, scale=0.1, shear=0.1, elastic=0.7, thicker=1, thinner=0.5),
                drawn_digits=0.09,
            ),
        ),
    )
}


def with_settings(experiment: Experiment, settings: Iterable[str]) -> Experiment:
    """Return `experiment` with a recipe changed by `settings`: FIELD=VALUE, or augmentation.FIELD=VALUE.

    Raises TrainError for an unknown field, and for a value of the wrong type.
    """
    values = asdict(experiment.recipe)
    for setting in settings:
        path, _, value = setting.partition("=")
        owner, _, name = path.rpartition(".")
        recipe = {"": values, "augmentation": values["augmentation"]}.get(owner) or {}
        if name not in recipe:
            known = [*values, *(f"augmentation.{field}" for field in values["augmentation"] or ())]
            raise TrainError(f"--set {setting}: expected FIELD=VALUE with FIELD one of {', '.join(known)}")
        try:
            recipe[name] = json.loads(value)
            changed = msgspec.convert(values, Recipe)
        except (ValueError, msgspec.MsgspecError) as error:
            raise TrainError(f"--set {setting}: expected a JSON value of the field's type; error: {error}") from error
        experiment = replace(experiment, recipe=changed)
    return experiment


def experiments(names: Iterable[str] | None = None, settings: Iterable[str] = ()) -> list[Experiment]:
    """Return the named experiments, or all, in the progression's order, with recipes changed by `settings`.

    Raises TrainError for an unknown name, and the errors of with_settings.
    """
    names = set(PROGRESSION if names is None else names)
    if unknown := sorted(names - PROGRESSION.keys()):
        raise TrainError(f"expected one of the models {', '.join(PROGRESSION)}; found {', '.join(unknown)}")
    return [with_settings(one, settings) for one in PROGRESSION.values() if one.name in names]


def layer_table(network: nn.Module) -> str:
    """Return torchinfo's table of the layers of `network`, for one image."""
    columns = ("output_size", "kernel_size", "num_params")
    return str(torchinfo.summary(network, (1, 1, SIDE, SIDE), col_names=columns, device="cpu", mode="eval", verbose=0))
