"""A checkpoint: the training's whole state after an epoch, so that a training can resume.

A checkpoint is two files: `epoch-NN.safetensors` (weights and momentum) and `checkpoint.json` (everything else).
checkpoint.json is replaced last, so the folder contains a complete checkpoint at any time, even after a crash.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import safetensors.torch
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from train import TrainError
from train.data import Data
from train.files import read_bytes, sha256, to_json, write_bytes
from train.machine import provenance
from train.progression import Experiment


@dataclass(frozen=True)
class Epoch:
    """The metrics of one epoch. Losses are mean cross-entropies in nats, accuracies are fractions."""

    epoch: int  # from 1
    train_loss: float  # mean over the epoch's augmented images, measured while the weights change
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    test_loss: float  # reported, never used to choose anything
    test_accuracy: float
    seconds: float


def settings(experiment: Experiment, data: Data, seed: int) -> dict[str, Any]:
    """Return model, seed, recipe and data of a training as JSON values. Equal settings mean the same training."""
    recipe = asdict(experiment.recipe)
    return {
        "model": experiment.name,
        "network": sha256(repr(experiment.network()).encode()),  # a hash of the list of layers
        "seed": seed,
        "epochs": recipe.pop("epochs"),
        "recipe": recipe,
        "data": data.sha256,
    }


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoint folder of one training. `settings` identify the training."""

    path: Path
    settings: dict[str, Any]

    def save(self, network: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, history: list[Epoch]) -> None:
        """Write a checkpoint after the last epoch of `history`, then delete the previous checkpoint's weights."""
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
        """Write the `files` of a checkpoint in their order, then delete the weights of the previous checkpoint."""
        for name, content in files.items():
            write_bytes(self.path / name, content)
        for other in self.path.glob("epoch-*.safetensors"):
            if other.name not in files:
                other.unlink()

    def load(
        self, network: nn.Module, optimizer: Optimizer | None = None, scheduler: LRScheduler | None = None
    ) -> tuple[list[Epoch], dict[str, Any]]:
        """Load the last checkpoint into the given objects. Return its history and provenance, or [] and {} without any.

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
                    f"{self.path} holds a training with {name} {found}, but this training has {name} {value}: "
                    "choose another --out, or delete this folder"
                )
        weights = self.path / checkpoint["weights"]["file"]
        content = read_bytes(weights)
        self._check_hash(weights, checkpoint["weights"]["sha256"], sha256(content))
        tensors = safetensors.torch.load(content)
        network.load_state_dict({name: tensors[f"network.{name}"] for name in network.state_dict()})
        if optimizer and scheduler:
            state = {
                # Keep the parameter's memory layout: with another layout, the results differ in their last bit.
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
