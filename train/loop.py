"""The training loop. The data stays on the device as whole tensors; a batch is an index into them.

An epoch's randomness (order, augmentation, dropout) comes from torch's global generator, seeded with the training's
seed and the epoch's number alone: a training resumed at an epoch goes on exactly as if it had never stopped.
"""

import threading
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR
from tqdm import tqdm

from model.classifier import normalise, scale
from train import device as devices
from train.checkpoint import CheckpointFolder, Epoch
from train.data import Data, Split
from train.errors import DivergenceError, SettingsError
from train.progression import Experiment, Recipe

CHECK_EVERY = 50  # batches, on a CPU; a GPU would have to wait for a check, and is checked once an epoch
EVALUATION_BATCH = 500  # at a thousand, malloc maps Model_1's largest layer anew each time: half as fast
MINIMUM_BATCHES = 10  # one-cycle's first fifth needs two

# tqdm would make a semaphore of the system's, for bars in several processes, and a process that is killed leaves it.
tqdm.set_lock(threading.RLock())


def fit(
    experiment: Experiment,
    data: Data,
    *,
    seed: int,
    device: torch.device,
    checkpoints: CheckpointFolder | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    bar: float | None = None,
) -> tuple[nn.Module, list[Epoch]]:
    """Train `experiment`'s network on `data` by its recipe and return it with the figures of each epoch.

    Goes on from the last of `checkpoints` and writes one after every epoch; `on_epoch` is called with each epoch's
    figures; `bar` shows a progress bar an epoch, drawn anew every so many seconds. Raises DivergenceError when the loss
    becomes NaN or infinite.
    """
    recipe = experiment.recipe
    batches = len(data.train) // recipe.batch_size
    if batches * recipe.epochs < MINIMUM_BATCHES:
        raise SettingsError(
            f"{data.name}: expected {MINIMUM_BATCHES} or more batches of {recipe.batch_size} training images in all, "
            f"found {batches * recipe.epochs}: {len(data.train)} images, {recipe.epochs} epochs"
        )
    data = data.to(device)
    _seed(seed, epoch=0)
    network = experiment.network().to(memory_format=torch.channels_last).to(device)
    optimizer = SGD(
        network.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )
    scheduler = _scheduler(optimizer, recipe, batches * recipe.epochs)
    history = checkpoints.load(network, optimizer, scheduler)[0] if checkpoints else []
    forward: nn.Module = network
    if device.type == "cuda":
        forward = devices.compiled(network, _prepare(data.train.images[: recipe.batch_size], recipe))

    for number in range(len(history) + 1, recipe.epochs + 1):
        if bar is not None:
            print(f"EPOCH: {number}/{recipe.epochs}")
        _seed(seed, number)
        started = time.perf_counter()
        try:
            figures = (
                *_train_epoch(forward, optimizer, scheduler, recipe, data.train, bar),
                *evaluate(network, data.validation),
                *evaluate(network, data.test),
            )
        except FloatingPointError as error:
            loss, place = error.args
            raise DivergenceError(
                f"{experiment.name}, seed {seed}: the loss became {loss} in epoch {number}, {place}"
                + (f"; the checkpoint of epoch {number - 1} is intact" if checkpoints and history else ""),
                epoch=number,
            ) from error
        history.append(Epoch(number, *figures, round(time.perf_counter() - started, 2)))
        if checkpoints:
            checkpoints.save(network, optimizer, scheduler, history)
        on_epoch(history[-1])
    return network.eval(), history


@torch.inference_mode()
def evaluate(network: nn.Module, split: Split) -> tuple[float, float]:
    """Return the mean cross-entropy (nats) and the accuracy (share of 1) of `network` on `split`."""
    network.eval()
    loss, correct = torch.zeros((), device=split.labels.device), torch.zeros((), device=split.labels.device)
    for images, labels in zip(split.images.split(EVALUATION_BATCH), split.labels.split(EVALUATION_BATCH), strict=True):
        logits = network(normalise(scale(images)))
        loss += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(dim=1) == labels).sum()
    if not loss.isfinite():
        raise FloatingPointError(loss.item(), "when evaluated")
    return loss.item() / len(split), correct.item() / len(split)


def _seed(seed: int, epoch: int) -> None:
    torch.manual_seed(seed * 1_000 + epoch)


def _scheduler(optimizer: SGD, recipe: Recipe, total: int) -> LRScheduler:
    if not recipe.one_cycle:
        return ConstantLR(optimizer, factor=1.0)
    # Smith & Topin, "Super-Convergence", 2018, in torch's form: cosine from a 25th of the peak up to it in the first
    # fifth, then down to a 250,000th.
    return OneCycleLR(optimizer, recipe.learning_rate, total_steps=total, pct_start=0.2, cycle_momentum=False)


def _prepare(images: Tensor, recipe: Recipe) -> Tensor:
    scaled = scale(images)
    return normalise(recipe.augmentation(scaled) if recipe.augmentation else scaled)


def batch_loss(network: nn.Module, split: Split, batch: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Return the mean loss on the images of `split` at the indices `batch`, augmented, and how many are right."""
    labels = split.labels[batch]
    logits = network(_prepare(split.images[batch], recipe))
    return F.cross_entropy(logits, labels), (logits.detach().argmax(dim=1) == labels).sum()


def _train_epoch(
    network: nn.Module, optimizer: SGD, scheduler: LRScheduler, recipe: Recipe, split: Split, bar: float | None
) -> tuple[float, float]:
    """Return the running mean loss and accuracy of one pass over `split`."""
    network.train()
    # A last batch that is not full is left out, another one every epoch: batch normalisation is noisy on a few images.
    order = torch.randperm(len(split), device=split.labels.device)
    batches = order[: len(split) // recipe.batch_size * recipe.batch_size].view(-1, recipe.batch_size)
    losses = torch.zeros(len(batches), device=order.device)
    correct = torch.zeros((), device=order.device)
    every = len(batches) if order.is_cuda else CHECK_EVERY
    with tqdm(total=len(batches), disable=bar is None, mininterval=bar or 0, dynamic_ncols=True) as progress:
        for number, batch in enumerate(batches):
            loss, right = batch_loss(network, split, batch, recipe)
            optimizer.zero_grad()  # to None, before anything reads them: a CUDA graph has written over the last ones
            loss.backward()
            optimizer.step()
            scheduler.step()
            losses[number] = loss.detach()
            correct += right
            done = number + 1
            if done % every == 0 or done == len(batches):
                finite = losses[:done].isfinite().tolist()
                if not all(finite):
                    first = finite.index(False)
                    raise FloatingPointError(losses[first].item(), f"batch {first}")
                mean, accuracy = losses[:done].mean().item(), correct.item() / (done * recipe.batch_size)
                progress.set_description_str(
                    f"Loss={mean:.4f} Batch_id={number} Accuracy={100 * accuracy:.2f}", refresh=False
                )
                progress.update(done - progress.n)
    return mean, accuracy
