"""The command line, python -m train [consistency | frontier | verify | release]."""

import argparse
import io
import os
import platform
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from train import paths
from train.errors import TrainError

# Commands import their modules when they run: importing torch takes seconds, and --help should be fast.


def _imported(name: str) -> Callable[..., None]:
    """Return a function that imports train.`name` and calls the function `name` in it."""
    return lambda **options: getattr(import_module(f"train.{name}"), name)(**options)


def _verify(folder: Path, data_directory: Path) -> None:
    from train.data import load
    from train.verify import verify

    print(f"{folder}: verified {verify(folder, load(data_directory)).outcome()}")


EXAMPLES = """\
other commands, each with its own --help:
  consistency   train one model with many seeds, and write a table and a plot
  frontier      train Model_3 in several widths, and write the accuracy by number of parameters
  verify        verify an export: hashes, graph, and every test image against PyTorch
  release       verify OUT/release again and copy it to model/release with a model card

examples:
  python -m train
  python -m train --models Model_3 --seed 2 --out artifacts/seed-2
  python -m train consistency --model Model_3 --seeds 10
  python -m train verify artifacts/release

If interrupted, run the same command again: it resumes after the last complete epoch. If RAY_ADDRESS is set, the models
are trained on that Ray cluster."""

COMMANDS: dict[str, tuple[Callable[..., None], str, tuple[str, ...]]] = {
    "": (
        _imported("run"),
        "Train the MNIST progression (Model_1, Model_2, Model_3), export the best model within 8,000 parameters to "
        "verified ONNX, and write a report.",
        ("--models", "--seed", "--epochs", "--device", "--out", "--data"),
    ),
    "consistency": (
        _imported("consistency"),
        "Train one model with seeds 1 to N (on a CPU in parallel), and write OUT/consistency/: the table "
        "(consistency.md), the plot, and the history of every seed as JSON. Finished seeds are not trained again. If "
        "RAY_ADDRESS is set, the seeds are trained on that Ray cluster.",
        ("--model", "--seeds", "--epochs", "--device", "--out", "--data"),
    ),
    "frontier": (
        _imported("frontier"),
        "Train Model_3 in several widths with several seeds each, and write OUT/frontier/: the table (frontier.md), "
        "the plot, and the statistics as JSON. Seeds that `consistency` has trained are not trained again.",
        ("--epochs", "--device", "--out", "--data"),
    ),
    "verify": (
        _verify,
        "Verify the export in FOLDER: its files against its manifest, and its graph against its weights on every image "
        "of the test set, with four batch sizes and two optimisation levels.",
        ("folder", "--data"),
    ),
    "release": (
        lambda out, **options: _imported("release")(source=out / "release", **options),
        "Verify the export in OUT/release again and copy it to model/release with a model card.",
        ("--force", "--out", "--data"),
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code: 0 for success, 1 for an error, which is printed, 2 for wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    options = _parser(name).parse_args(arguments[1:] if name else arguments)
    try:
        import_module("fcntl")  # which Windows lacks
        COMMANDS[name][0](**vars(options))
    except ModuleNotFoundError as missing:
        fault = f"expected the module {missing.name}, found none; `make setup` installs it into .venv, then run"
        fault += " .venv/bin/python -m train"
        if missing.name == "fcntl":
            fault = f"expected Linux, macOS or WSL, found {platform.system()}: use Docker (docs/containers.md)"
        print(f"error: {fault}", file=sys.stderr)
    except (TrainError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
    else:
        return 0
    return 1


def _parser(name: str) -> argparse.ArgumentParser:
    _, description, options = COMMANDS[name]
    parser = argparse.ArgumentParser(
        prog=f"python -m train {name}".strip(),
        description=description,
        epilog=None if name else EXAMPLES,
        formatter_class=argparse.HelpFormatter if name else argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for option in options:
        parser.add_argument(option, **OPTIONS[option])
    return parser


def _whole(expected: str, accepted: range) -> Callable[[str], int]:
    """Return a parser of whole numbers in `accepted`. `expected` describes them in the error message."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) not in accepted:
            raise argparse.ArgumentTypeError(f"expected {expected}, found {text}")
        return int(text)

    return parse


POSITIVE = _whole("a positive whole number", range(1, 2**32))
SEED = _whole(f"a whole number from 0 to {2**32 - 1}", range(2**32))
OPTIONS: dict[str, dict[str, Any]] = {
    "folder": {"type": Path, "metavar": "FOLDER"},
    "--models": {
        "nargs": "+",
        "metavar": "MODEL",
        "help": "the models to train, export and report (default: all of the progression)",
    },
    "--model": {"dest": "name", "metavar": "MODEL", "default": "Model_3", "help": "(default: Model_3)"},
    "--seed": {"type": SEED, "default": 1, "help": "seed of weights, order and augmentation (default: 1)"},
    "--seeds": {"type": POSITIVE, "default": 10, "metavar": "N", "help": "number of seeds (default: 10)"},
    "--epochs": {
        "type": POSITIVE,
        "metavar": "N",
        "help": "number of epochs, which the learning rate schedule spans (default: the recipe's 15)",
    },
    "--device": {
        "dest": "device_name",
        "choices": ["auto", "cpu", "cuda"],
        "default": "auto",
        "help": "(default: auto, a GPU if available)",
    },
    "--out": {"type": Path, "default": Path("artifacts"), "help": "output folder (default: artifacts)"},
    "--data": {
        "dest": "data_directory",
        "metavar": "DATA",
        "type": Path,
        "default": paths.DATA,
        "help": "folder with the four IDX files, gzipped or plain, of MNIST or a data set in its format "
        "(default: data/mnist)",
    },
    "--force": {"action": "store_true", "help": "also release a model that misses the target accuracy"},
}


def _set_up_process() -> None:
    """Set up signals and output: end at once at Ctrl-C or SIGTERM, and ignore output that cannot be written."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # a shell's background jobs ignore SIGINT
            signal.signal(number, _interrupt)
    while os.open(os.devnull, os.O_RDWR) <= 2:
        pass  # otherwise the next opened file would get the descriptor of a closed stream
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        output = io.BufferedWriter(_Output(descriptor, "w", closefd=False))
        encoding = getattr(getattr(sys, name), "encoding", None)  # the stream is None if it is closed
        setattr(sys, name, io.TextIOWrapper(output, encoding, errors="backslashreplace", line_buffering=True))


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """End the process directly: an exception could be swallowed, for example while torch imports numpy.

    Nothing is lost, because every file is written atomically. Child processes end with this one.
    """
    with suppress(OSError):
        os.write(2, b"\ninterrupted: finished epochs are saved; run the same command again to resume\n")
    os._exit(128 + number)


class _Output(io.FileIO):
    """A standard stream that drops output it cannot write, for example after its reader has ended (`| head`)."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError:
            return memoryview(content).nbytes


if __name__ == "__main__":
    _set_up_process()
    sys.exit(main())
