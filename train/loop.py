"""The training loop. All data is on the device, and a batch is a tensor of indices of training images.

Each epoch seeds torch's global generator, for order, augmentation and dropout. The seed depends on the training's seed
and the epoch's number only. Therefore a resumed training on a CPU gives the same bits as an uninterrupted training.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR
from tqdm import tqdm

from model.classifier import normalise, scale
from train import DivergenceError, TrainError
from train.checkpoint import CheckpointFolder, Epoch
from train.cuda_graph import Step, captured
from train.data import Data, Split
from train.drawn_digits import with_drawn_digits
from train.progression import Experiment, Recipe

# On a CPU, the loss is checked every 50 batches; on a GPU once per epoch, as reading the loss forces synchronisation.
CHECK_INTERVAL = 50
EVALUATION_BATCH_SIZE = 500  # at 1,000, malloc maps new memory for Model_1's largest layer each time: twice as slow
MINIMUM_BATCHES = 10  # of all epochs together: the first fifth of the one-cycle schedule needs two batches


def fit(
    experiment: Experiment,
    data: Data,
    *,
    seed: int,
    device: torch.device,
    checkpoints: CheckpointFolder | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    position: int | None = None,
) -> tuple[nn.Module, list[Epoch]]:
    """Train the network of `experiment` by its recipe and return it with its history, one entry per epoch.

    Resumes from the last checkpoint in `checkpoints`. After every epoch, writes a checkpoint and calls `on_epoch`.
    `position` is the terminal's line for the progress bar; None hides the bar. Raises TrainError if torch refuses the
    recipe or the data set is too small, and DivergenceError if the loss becomes NaN or infinite.
    """
    recipe = experiment.recipe
    images = with_drawn_digits(data.train, recipe.drawn_digits)
    batches = len(images) // recipe.batch_size
    if batches * recipe.epochs < MINIMUM_BATCHES:
        raise TrainError(
            f"{data.name}: expected {MINIMUM_BATCHES} or more batches of {recipe.batch_size} training images, "
            f"found {batches * recipe.epochs} in all: {len(images)} images, {recipe.epochs} epochs"
        )
    train, validation, test = (split.to(device) for split in (images, data.validation, data.test))
    torch.manual_seed(seed * 1_000)
    network = experiment.network().to(memory_format=torch.channels_last).to(device)
    optimizer, scheduler = _optimizer(network, recipe, batches * recipe.epochs)
    history = checkpoints.load(network, optimizer, scheduler)[0] if checkpoints else []
    hidden = True if position is None else None  # None: tqdm shows the bar only on a terminal

    def step(batch: Tensor) -> tuple[Tensor, Tensor]:
        loss, right = batch_loss(network, train, batch, recipe)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach(), right

    network.train()
    example = torch.arange(recipe.batch_size, device=device)
    run: Step = captured(step, network, optimizer, example) if device.type == "cuda" else step
    for number in range(len(history) + 1, recipe.epochs + 1):
        torch.manual_seed(seed * 1_000 + number)
        started = time.perf_counter()
        network.train()
        # Leave out the last, partial batch, on which batch normalisation is noisy. Each epoch leaves out other images.
        order = torch.randperm(len(train), device=device)[: batches * recipe.batch_size].view(batches, -1)
        name = f"{experiment.name}, seed {seed}, epoch {number}/{recipe.epochs}"
        try:
            with tqdm(total=batches, desc=name, position=position, leave=False, disable=hidden) as progress:
                figures = (
                    *_train_epoch(run, scheduler, order, progress),
                    *evaluate(network, validation),
                    *evaluate(network, test),
                )
        except FloatingPointError as error:
            loss, place = error.args
            message = f"{experiment.name}, seed {seed}: the loss became {loss} in epoch {number}, {place}"
            raise DivergenceError(message) from error
        history.append(Epoch(number, *figures, round(time.perf_counter() - started, 2)))
        if checkpoints:
            checkpoints.save(network, optimizer, scheduler, history)
        on_epoch(history[-1])
    return network.eval(), history


@torch.inference_mode()
def evaluate(network: nn.Module, split: Split) -> tuple[float, float]:
    """Return the mean cross-entropy (nats) and the accuracy (fraction) of `network` on `split`."""
    network.eval()
    loss, correct = torch.zeros((), device=split.labels.device), torch.zeros((), device=split.labels.device)
    batches = (tensor.split(EVALUATION_BATCH_SIZE) for tensor in (split.images, split.labels))
    for images, labels in zip(*batches, strict=True):
        logits = network(normalise(scale(images)))
        loss += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(dim=1) == labels).sum()
    if not loss.isfinite():
        raise FloatingPointError(loss.item(), "during the evaluation")
    return loss.item() / len(split), correct.item() / len(split)


def _optimizer(network: nn.Module, recipe: Recipe, steps: int) -> tuple[SGD, LRScheduler]:
    """Return the optimizer and the learning rate schedule of `recipe` for `steps` training steps."""
    momentum, nesterov, decay = recipe.momentum, recipe.nesterov, recipe.weight_decay
    try:
        optimizer = SGD(network.parameters(), recipe.learning_rate, momentum, nesterov=nesterov, weight_decay=decay)
    except ValueError as error:
        raise TrainError(f"the recipe: {error}") from error
    if not recipe.one_cycle:
        return optimizer, ConstantLR(optimizer, factor=1.0)
    # Smith & Topin, "Super-Convergence", 2018, in torch's form: a cosine from 1/25 of the peak to the peak in the first
    # fifth of the steps, then a cosine down to 1/250,000 of the peak.
    schedule = OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.2, cycle_momentum=False)
    return optimizer, schedule


def batch_loss(network: nn.Module, split: Split, batch: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Augment the images of `split` at the indices `batch`. Return mean loss and number of correct predictions."""
    images, labels = scale(split.images[batch]), split.labels[batch]
    logits = network(normalise(recipe.augmentation(images) if recipe.augmentation else images))
    return F.cross_entropy(logits, labels), (logits.detach().argmax(dim=1) == labels).sum()


def _train_epoch(step: Step, scheduler: LRScheduler, batches: Tensor, progress: "tqdm[None]") -> tuple[float, float]:
    """Train on `batches` of indices for one epoch and return the running mean loss and accuracy."""
    losses = torch.zeros(len(batches), device=batches.device)
    correct = torch.zeros((), device=batches.device)
    interval = len(batches) if batches.is_cuda else CHECK_INTERVAL
    for number, batch in enumerate(batches):
        loss, right = step(batch)
        scheduler.step()
        losses[number] = loss
        correct += right
        done = number + 1
        if done % interval == 0 or done == len(batches):
            finite = losses[:done].isfinite().tolist()
            if not all(finite):
                first = finite.index(False)
                raise FloatingPointError(losses[first].item(), f"batch {first}")
            mean, accuracy = losses[:done].mean().item(), correct.item() / (done * batches.shape[1])
            progress.set_postfix_str(f"Loss={mean:.4f} Batch_id={number} Accuracy={100 * accuracy:.2f}", refresh=False)
            progress.update(done - progress.n)
    return mean, accuracy
