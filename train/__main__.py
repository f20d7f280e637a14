"""The command line, python -m train [consistency | frontier | verify | release]."""

import argparse
import multiprocessing
import os
import platform
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType

from train import TrainError, paths

# The name of each command, its function and its description. The name of the main command is empty.
COMMANDS = {
    "": ("run.run", "Train the progression, export the best model, write a report."),
    "consistency": ("studies.consistency", "Train one model with seeds 1 to N; write a table and a plot."),
    "frontier": ("studies.frontier", "Train Model_1, Model_2 and several widths of Model_3; plot accuracy by size."),
    "verify": ("run.verify", "Verify an export: hashes, contract, test accuracy, predictions on every test image."),
    "release": ("run.release", "Verify OUT/release again and copy it to model/release with a model card."),
}
OTHERS = "\n".join(f"  {name:<13} {description}" for name, (_, description) in COMMANDS.items() if name)
EPILOG = f"""\
other commands, each with its own --help:
{OTHERS}

examples:
  python -m train --models Model_3 --seed 2 --set learning_rate=0.05 --out artifacts/seed-2
  python -m train consistency --model Model_3 --seeds 10
  python -m train verify artifacts/release

After an interruption, run the same command again: it resumes after the last complete epoch. If RAY_ADDRESS (host:port)
is set, the models are trained on the Ray cluster at this address."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return 0. If it fails, print the error and return 1. Wrong usage exits with status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parsers = _parsers()
    name = arguments[0] if arguments and arguments[0] in parsers else ""
    options = vars(parsers[name].parse_args(arguments[1:] if name else arguments))
    if epochs := options.pop("epochs", None):
        options["settings"] = [*options["settings"], f"epochs={epochs}"]
    module, _, function = options.pop("command").partition(".")
    try:
        import_module("fcntl")  # Windows does not have fcntl
        # Imported only here, because torch takes seconds to import and --help should be fast.
        getattr(import_module(f"train.{module}"), function)(**options)
    except ModuleNotFoundError as missing:
        fault = f"expected the module {missing.name}, found none; `make setup` installs it into .venv; then run"
        fault += " .venv/bin/python -m train"
        if missing.name == "fcntl":
            fault = f"expected Linux, macOS or WSL, found {platform.system()}: use Docker (docs/containers.md)"
        print(f"error: {fault}", file=sys.stderr)
    except (TrainError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    else:
        return 0
    return 1


def _parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command."""
    data, out, training = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    data.add_argument("--data", dest="data_directory", type=Path, default=paths.DATA, help="folder of four IDX files")
    out.add_argument("--out", type=Path, default=Path("artifacts"), help="output folder (default: artifacts)")
    training.add_argument("--epochs", type=_whole(1), metavar="N", help="number of epochs (default: 15)")
    change = "change a field of the recipe, for example learning_rate=0.05 or augmentation.degrees=10; repeatable"
    training.add_argument("--set", dest="settings", action="append", metavar="FIELD=VALUE", help=change)
    training.set_defaults(settings=[])
    training.add_argument("--device", dest="device_name", choices=["auto", "cpu", "cuda"], default="auto")
    parsers = {}
    for name, (command, description) in COMMANDS.items():
        parsers[name] = argparse.ArgumentParser(
            prog=f"python -m train {name}".strip(),
            description=description,
            epilog=None if name else EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents={"verify": [data], "release": [out, data]}.get(name, [training, out, data]),
            allow_abbrev=False,
        )
        parsers[name].set_defaults(command=command)
    parsers[""].add_argument("--models", nargs="+", metavar="MODEL", help="models to train (default: all)")
    parsers[""].add_argument(
        "--seed", type=_whole(0), default=1, help="seed of weights, image order, augmentation and dropout (default: 1)"
    )
    parsers["consistency"].add_argument("--model", dest="name", default="Model_3", help="the model (default: Model_3)")
    parsers["consistency"].add_argument("--seeds", type=_whole(1), default=10, metavar="N", help="number (default: 10)")
    parsers["verify"].add_argument("folder", type=Path, metavar="FOLDER")
    parsers["release"].add_argument("--force", action="store_true", help="also release a model that misses the target")
    return parsers


def _whole(lowest: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `lowest` to 2**32 - 1."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not lowest <= int(text) < 2**32:
            raise argparse.ArgumentTypeError(f"expected a whole number from {lowest} to {2**32 - 1}, found {text}")
        return int(text)

    return parse


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """End the process without an exception. Other code could catch an exception: torch does, while it imports numpy.

    No file is damaged, because every file is written atomically.
    """
    for child in multiprocessing.active_children():
        child.kill()
    with suppress(OSError):
        os.write(2, b"\ninterrupted: finished epochs are saved; run the same command again to resume\n")
    os._exit(128 + number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # SIGINT stays ignored in the background jobs of a shell
            signal.signal(number, _interrupt)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
