"""Checkpoints: after every epoch, all that the next one depends on, as safetensors and JSON.

A folder holds `epoch-NN.safetensors` (weights and momentum) and `checkpoint.json` (everything else, and the SHA-256 of
both), which is replaced last: whenever the process dies, the folder holds one whole checkpoint.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from train.data import Data
from train.errors import SettingsError, TrainError
from train.files import read_bytes, read_json, sha256, write_bytes, write_json
from train.progression import Experiment
from train.provenance import provenance


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to. Losses are mean cross-entropies in nats, accuracies shares of 1."""

    epoch: int  # from 1
    train_loss: float  # running, over the augmented images, as the weights change
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    test_loss: float  # reported, never used
    test_accuracy: float
    seconds: float


def settings(experiment: Experiment, data: Data, seed: int) -> dict[str, Any]:
    """Return what decides a training's result, as JSON values: two trainings that agree in it are the same one."""
    recipe = asdict(experiment.recipe)
    return {
        "model": experiment.name,
        "network": sha256(repr(experiment.network()).encode()),  # its layers
        "seed": seed,
        "epochs": recipe.pop("epochs"),
        "recipe": recipe,
        "data": data.sha256,
    }


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of one training. `settings` are what decides its result, as JSON values."""

    path: Path
    settings: dict[str, Any]

    def save(self, network: nn.Module, optimizer: Optimizer, scheduler: LRScheduler, history: list[Epoch]) -> None:
        """Write the state after the last epoch of `history`, then delete that of the one before."""
        state = optimizer.state_dict()
        tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
        for index, buffers in state["state"].items():
            tensors[f"momentum.{index}"] = buffers["momentum_buffer"]
        content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
        weights = self.path / f"epoch-{len(history):02d}.safetensors"
        write_bytes(weights, content)
        checkpoint = {
            "settings": self.settings,
            "provenance": provenance(network),
            "weights": {"file": weights.name, "sha256": sha256(content)},
            "optimizer": state["param_groups"],
            "scheduler": _plain(scheduler.state_dict()),
            "history": [asdict(epoch) for epoch in history],
        }
        write_json(self.path / "checkpoint.json", checkpoint | {"sha256": _digest(checkpoint)})
        for other in self.path.glob("epoch-*.safetensors"):
            if other != weights:
                other.unlink()

    def load(
        self, network: nn.Module, optimizer: Optimizer | None = None, scheduler: LRScheduler | None = None
    ) -> tuple[list[Epoch], dict[str, Any]]:
        """Put the last checkpoint into what is given, and return its history and provenance; without one, none of both.

        Raises SettingsError where the folder is of another training, TrainError where it is damaged.
        """
        if not (self.path / "checkpoint.json").exists():
            return [], {}
        checkpoint, tensors = self._read()
        network.load_state_dict(_under("network.", tensors))
        if optimizer and scheduler:
            momentum = _under("momentum.", tensors)
            state = {
                # In the parameter's memory layout: another one rounds differently in the last bit.
                index: {"momentum_buffer": torch.empty_like(parameter).copy_(momentum[str(index)])}
                for index, parameter in enumerate(network.parameters())
            }
            optimizer.load_state_dict({"state": state, "param_groups": checkpoint["optimizer"]})
            scheduler.load_state_dict(checkpoint["scheduler"])
        return [Epoch(**epoch) for epoch in checkpoint["history"]], checkpoint["provenance"]

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the checkpoint and its tensors, as they were written."""
        path = self.path / "checkpoint.json"
        checkpoint = read_json(path)
        found = checkpoint.get("settings") if isinstance(checkpoint, dict) else None
        for name, value in self.settings.items():
            other = found.get(name) if isinstance(found, dict) else None
            if other != value:
                raise SettingsError(
                    f"{self.path} holds a training with {name} {other}, this one has {name} {value}: "
                    "choose another --out, or delete it"
                )
        self._check_hash(path, checkpoint.pop("sha256", None), _digest(checkpoint))
        weights = self.path / checkpoint["weights"]["file"]
        content = read_bytes(weights)
        self._check_hash(weights, checkpoint["weights"]["sha256"], sha256(content))
        return checkpoint, safetensors.torch.load(content)

    def _check_hash(self, path: Path, expected: str | None, found: str) -> None:
        if found != expected:
            raise TrainError(f"{path}: expected SHA-256 {expected}, found {found}; delete {self.path} to train anew")


def _digest(checkpoint: dict[str, Any]) -> str:
    return sha256(json.dumps(checkpoint, sort_keys=True).encode())


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Return what of a scheduler's state is data: JSON keeps it, floats to the last bit."""
    return {name: value for name, value in state.items() if isinstance(value, (int, float, str, list))}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
