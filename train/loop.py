"""One training: the loop and its checkpoints. The data is on the device as a whole; a batch is a tensor of indices.

Each epoch seeds torch's global generator from the training's seed and the epoch's number only, for order, augmentation
and dropout. Therefore a resumed training on a CPU gives the same bits as an uninterrupted one.

A checkpoint is the training's whole state after an epoch: `epoch-NN.safetensors` (weights and momentum) and
`checkpoint.json` (everything else, and the SHA-256 of both). checkpoint.json is replaced last, so the folder has a
complete checkpoint at any time, even after a crash.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR
from tqdm import tqdm

from model.classifier import normalise, scale
from train import DivergenceError, TrainError
from train.data import Data, Split
from train.drawn_digits import with_drawn_digits
from train.files import read_bytes, sha256, to_json, write_bytes
from train.machine import provenance
from train.progression import Experiment, Recipe

# Batches between checks of the loss on a CPU. A GPU checks once per epoch: reading the loss forces a synchronisation.
CHECK_INTERVAL = 50
EVALUATION_BATCH_SIZE = 500  # at 1,000, malloc maps Model_1's largest layer again for each batch: half as fast
MINIMUM_BATCHES = 10  # the first fifth of one-cycle needs two

# Trains on the images at the indices, int64 [N], and returns the mean loss and the number correct.
Step = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Epoch:
    """The metrics of one epoch. Losses are mean cross-entropies in nats, accuracies are fractions."""

    epoch: int  # from 1
    train_loss: float  # running mean over the augmented images while the weights change
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    test_loss: float  # reported, never used
    test_accuracy: float
    seconds: float


def settings(experiment: Experiment, data: Data, seed: int) -> dict[str, Any]:
    """Return everything that determines a training's result, as JSON values. Equal settings mean the same training."""
    recipe = asdict(experiment.recipe)
    return {
        "model": experiment.name,
        "network": sha256(repr(experiment.network()).encode()),  # a hash of its layers
        "seed": seed,
        "epochs": recipe.pop("epochs"),
        "recipe": recipe,
        "data": data.sha256,
    }


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoint folder of one training, which `settings` identify."""

    path: Path
    settings: dict[str, Any]

    def save(self, network: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, history: list[Epoch]) -> None:
        """Write a checkpoint after the last epoch of `history`, then delete the one before."""
        state = optimizer.state_dict()
        tensors = {f"network.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
        for index, buffers in state["state"].items():
            tensors[f"momentum.{index}"] = buffers["momentum_buffer"].contiguous()
        content = safetensors.torch.save(tensors)
        weights = f"epoch-{len(history):02d}.safetensors"
        checkpoint = {
            "settings": self.settings,
            "provenance": provenance(network),
            "weights": {"file": weights, "sha256": sha256(content)},
            "optimizer": state["param_groups"],
            "scheduler": scheduler.state_dict(),
            "history": [asdict(epoch) for epoch in history],
        }
        self.write({weights: content, "checkpoint.json": to_json(checkpoint | {"sha256": _digest(checkpoint)})})

    def write(self, files: dict[str, bytes]) -> None:
        """Write the `files` of a checkpoint one after the other, and delete the weights of the one before."""
        for name, content in files.items():
            write_bytes(self.path / name, content)
        for other in self.path.glob("epoch-*.safetensors"):
            if other.name not in files:
                other.unlink()

    def load(
        self, network: nn.Module, optimizer: Optimizer | None = None, scheduler: LRScheduler | None = None
    ) -> tuple[list[Epoch], dict[str, Any]]:
        """Load the last checkpoint into the given objects and return its history and provenance; both empty if none.

        Raises TrainError if the folder belongs to another training or is damaged.
        """
        path = self.path / "checkpoint.json"
        if not path.exists():
            return [], {}
        try:
            checkpoint = msgspec.json.decode(read_bytes(path), type=dict[str, Any])
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise TrainError(f"{path}: expected JSON, found: {error}") from error
        self._check_hash(path, checkpoint.pop("sha256", None), _digest(checkpoint))
        for name, value in self.settings.items():
            if (found := checkpoint["settings"].get(name)) != value:
                raise TrainError(
                    f"{self.path} holds a training with {name} {found}, this one has {name} {value}: "
                    "choose another --out, or delete it"
                )
        weights = self.path / checkpoint["weights"]["file"]
        content = read_bytes(weights)
        self._check_hash(weights, checkpoint["weights"]["sha256"], sha256(content))
        tensors = safetensors.torch.load(content)
        network.load_state_dict({name: tensors[f"network.{name}"] for name in network.state_dict()})
        if optimizer and scheduler:
            state = {
                # In the parameter's memory layout: another layout rounds the last bit differently.
                index: {"momentum_buffer": torch.empty_like(parameter).copy_(tensors[f"momentum.{index}"])}
                for index, parameter in enumerate(network.parameters())
            }
            optimizer.load_state_dict({"state": state, "param_groups": checkpoint["optimizer"]})
            scheduler.load_state_dict(checkpoint["scheduler"])
        return [Epoch(**epoch) for epoch in checkpoint["history"]], checkpoint["provenance"]

    def _check_hash(self, path: Path, expected: str | None, found: str) -> None:
        if found != expected:
            raise TrainError(f"{path}: expected SHA-256 {expected}, found {found}; delete {self.path} to train again")


def _digest(checkpoint: dict[str, Any]) -> str:
    return sha256(json.dumps(checkpoint, sort_keys=True).encode())


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

    Resumes from the last checkpoint in `checkpoints` and writes one after every epoch. `on_epoch` is called after every
    epoch. `position`: the line of the progress bar, which only a terminal has; None: no bar. Raises TrainError if
    torch refuses the recipe, and DivergenceError if the loss becomes NaN or infinite.
    """
    recipe = experiment.recipe
    images = with_drawn_digits(data.train, recipe.drawn_digits)
    batches = len(images) // recipe.batch_size
    if batches * recipe.epochs < MINIMUM_BATCHES:
        raise TrainError(
            f"{data.name}: expected {MINIMUM_BATCHES} or more batches of {recipe.batch_size} training images in all, "
            f"found {batches * recipe.epochs}: {len(images)} images, {recipe.epochs} epochs"
        )
    train, validation, test = (split.to(device) for split in (images, data.validation, data.test))
    torch.manual_seed(seed * 1_000)
    network = experiment.network().to(memory_format=torch.channels_last).to(device)
    optimizer, scheduler = _optimizer(network, recipe, batches * recipe.epochs)
    history = checkpoints.load(network, optimizer, scheduler)[0] if checkpoints else []
    hidden = True if position is None else None  # None: only on a terminal

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
        # Without the last, partial batch (different images every epoch): batch normalisation is noisy on a few images.
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
        raise FloatingPointError(loss.item(), "when evaluated")
    return loss.item() / len(split), correct.item() / len(split)


def _optimizer(network: nn.Module, recipe: Recipe, steps: int) -> tuple[SGD, LRScheduler]:
    """Return the optimizer and the learning rate schedule of `recipe` over `steps`."""
    try:
        optimizer = SGD(
            network.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
    except ValueError as error:
        raise TrainError(f"the recipe: {error}") from error
    if not recipe.one_cycle:
        return optimizer, ConstantLR(optimizer, factor=1.0)
    # Smith & Topin, "Super-Convergence", 2018, in torch's form: cosine from 1/25 of the peak up to it in the first
    # fifth, then down to 1/250,000 of the peak.
    schedule = OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps, pct_start=0.2, cycle_momentum=False)
    return optimizer, schedule


def batch_loss(network: nn.Module, split: Split, batch: Tensor, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Return the mean loss on the augmented images of `split` at the indices `batch`, and the number correct."""
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


def captured(step: Step, network: nn.Module, optimizer: SGD, batch: Tensor) -> Step:
    """Capture `step`, which trains `network` by `optimizer`, as a CUDA graph; return a function that replays it.

    A graph starts all kernels of a step at once. Started one by one, such small kernels take longer to start than to
    run. `batch` is an example of the indices that `step` takes; the function takes as many. It returns the same two
    tensors at every call: read them before the next one. It uses the current learning rate of the optimizer, which has
    one parameter group, and draws new random numbers. All other Python values are those at the time of the capture, and
    `step` must not copy anything to or from the CPU. Capturing changes neither weights nor momentum. Source: PyTorch's
    notes on CUDA semantics, "CUDA Graphs", whole-network capture.
    """
    momentum = [
        optimizer.state[weights].setdefault("momentum_buffer", torch.zeros_like(weights))
        for weights in network.parameters()
    ]
    state = [*network.state_dict().values(), *momentum]
    before = [tensor.clone() for tensor in state]
    (group,) = optimizer.param_groups
    options = dict(group)
    indices, rate = batch.clone(), torch.tensor(group["lr"], device=batch.device)
    group |= {"lr": rate, "fused": True}  # only the fused optimizer reads the learning rate from a tensor
    warm_up = torch.cuda.Stream()  # the first steps choose algorithms, which is not allowed during a capture
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        for _ in range(3):
            step(indices)
    torch.cuda.current_stream().wait_stream(warm_up)
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(indices)
    group |= options
    for tensor, value in zip(state, before, strict=True):
        tensor.copy_(value)

    def replay(batch: Tensor) -> tuple[Tensor, Tensor]:
        indices.copy_(batch)
        rate.fill_(group["lr"])
        graph.replay()
        return results

    return replay
