"""The run: train the progression's models in turn, export the best one, write the report."""

from collections.abc import Callable
from pathlib import Path

from model.networks import parameter_count
from train import device as devices
from train import report
from train.checkpoint import CheckpointFolder, Epoch, settings
from train.data import Data, load
from train.export import Trained, export
from train.files import check_writable
from train.layer_table import table
from train.loop import fit
from train.progression import PARAMETER_BUDGET, Step, steps, with_epochs


def run(models: list[str], *, epochs: int | None, seed: int, device_name: str, data_directory: Path, out: Path) -> None:
    """Train `models`, export the best within the parameter budget to `out`/release, and write `out`/report.md.

    Every model's checkpoints are in `out`/NAME: the same call after an interruption goes on from them. Raises
    TrainError, as one of its kinds, for all that a user can mend.
    """
    chosen = [with_epochs(step, epochs) for step in steps(models)]
    check_writable(out)
    device = devices.pick(device_name)
    data = load(data_directory)
    fallback = "; no GPU is used" if device.type == "cpu" else ""
    _say(f"Device: {devices.describe(device)}{fallback}")
    _say(
        f"Data: {data.name}, {len(data.train)} training, {len(data.validation)} validation and "
        f"{len(data.test)} test images"
    )
    trained = []
    for step in chosen:
        _introduce(step)
        checkpoints = CheckpointFolder(out / step.name, settings(step, data, seed))
        network, history = fit(
            step, data, seed=seed, device=device, checkpoints=checkpoints, on_epoch=_results(data), bar=True
        )
        _say(
            f"--- Finished training for {step.name}: {100 * history[-1].test_accuracy:.2f}% at epoch {len(history)} ---"
        )
        trained.append(Trained(step.name, network.cpu(), seed, history))

    manifest = None
    if best := best_within_budget(trained):
        manifest = export(best, data, out / "release")
        parity = manifest["parity"]
        _say(
            f"\nExported {best.name}, the best within {PARAMETER_BUDGET:,} parameters by validation accuracy "
            f"({100 * best.history[-1].validation_accuracy:.2f}%): {out / 'release' / 'digits.onnx'}\n"
            f"Verified on {parity['images']} test images: every label as PyTorch's, probabilities within "
            f"{parity['max_abs_probability_difference']:.1e}; {manifest['test_correct']} right"
        )
    else:
        _say(f"\nNothing exported: no model trained here has at most {PARAMETER_BUDGET:,} parameters")
    _say(f"Report: {report.write(out, chosen, trained, data, manifest)}")


def best_within_budget(trained: list[Trained]) -> Trained | None:
    """Return the model to export: the best at its last epoch by validation accuracy, then validation loss."""
    small = [model for model in trained if parameter_count(model.network) <= PARAMETER_BUDGET]
    return max(small, key=_validation, default=None)


def _validation(model: Trained) -> tuple[float, float]:
    return model.history[-1].validation_accuracy, -model.history[-1].validation_loss


def _introduce(step: Step) -> None:
    _say(f"\n--- Starting training for {step.name} ---\nTarget:")
    for target in step.target:
        _say(f"  - {target}")
    _say(f"Expected: {step.expectation}\nRecipe: {step.recipe}")
    _say(table(step.network()))


def _results(data: Data) -> Callable[[Epoch], None]:
    def say(epoch: Epoch) -> None:
        for name, split, loss, accuracy in (
            ("Validation set", data.validation, epoch.validation_loss, epoch.validation_accuracy),
            ("Test set", data.test, epoch.test_loss, epoch.test_accuracy),
        ):
            correct = round(accuracy * len(split))
            _say(f"{name}: Average loss: {loss:.4f}, Accuracy: {correct}/{len(split)} ({100 * accuracy:.2f}%)")
        _say("")

    return say


def _say(text: str) -> None:
    print(text, flush=True)
