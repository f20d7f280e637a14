"""The command line: python -m train [consistency | verify | release]."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from train import paths
from train.errors import TrainError

# What a command needs is imported when it runs: torch takes seconds, and --help should not.


def _run(**options: Any) -> None:
    from train.run import run

    run(**options)


def _consistency(**options: Any) -> None:
    from train.consistency import consistency

    consistency(**options)


def _frontier(**options: Any) -> None:
    from train.frontier import frontier

    frontier(**options)


def _verify(folder: Path, data_directory: Path) -> None:
    from train.data import load
    from train.verify import verify

    export = verify(folder, load(data_directory))
    print(
        f"{folder}: verified on {export.parity.images} test images: every label as PyTorch's, "
        f"probabilities within {export.parity.max_abs_probability_difference:.1e}; {export.manifest.test_correct} right"
    )


def _release(out: Path, **options: Any) -> None:
    from train.release import release

    release(out / "release", **options)


EXAMPLES = """\
other commands, each with a --help of its own:
  consistency   train one model with many seeds, and write their table and plot
  frontier      train Model_3's family in several widths, and write accuracy over parameters
  verify        check an export: hashes, graph, and every test image against PyTorch
  release       promote OUT/release to model/release, verified once more, with a model card

examples:
  python -m train
  python -m train --models Model_3 --seed 2 --out artifacts/seed-2
  python -m train consistency --model Model_3 --seeds 10
  python -m train verify artifacts/release

Interrupted, the same command goes on from the last whole epoch. With RAY_ADDRESS set, the models are trained on that
Ray cluster."""

COMMANDS: dict[str, tuple[Callable[..., None], str, tuple[str, ...]]] = {
    "": (
        _run,
        "Train the MNIST progression (Model_1, Model_2, Model_3), export the best model within 8,000 parameters to "
        "ONNX, verified, and write a report.",
        ("--models", "--seed", "--epochs", "--device", "--out", "--data"),
    ),
    "consistency": (
        _consistency,
        "Train one model with seeds 1 to N, in parallel, and write OUT/consistency/: the table (consistency.md), its "
        "plot and every epoch's figures as JSON. Seeds that are done are not run again. With RAY_ADDRESS set, they are "
        "trained on that Ray cluster.",
        ("--model", "--seeds", "--epochs", "--device", "--out", "--data"),
    ),
    "frontier": (
        _frontier,
        "Train Model_3's family in several widths, each with several seeds, and write OUT/frontier/: the table "
        "(frontier.md), its plot and the figures as JSON. Seeds that `consistency` has trained are not run again.",
        ("--epochs", "--device", "--out", "--data"),
    ),
    "verify": (
        _verify,
        "Check the export in FOLDER against its manifest, and its graph against its weights on every image of the test "
        "set, at four batch sizes and two optimisation levels.",
        ("folder", "--data"),
    ),
    "release": (
        _release,
        "Verify the export in OUT/release once more and copy it to model/release with a model card.",
        ("--force", "--out", "--data"),
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code: 0 done, 1 an error that is printed, 2 wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments and arguments[0] in COMMANDS else ""
    options = _parser(name).parse_args(arguments[1:] if name else arguments)
    try:
        COMMANDS[name][0](**vars(options))
    except ModuleNotFoundError as missing:
        problem = f"expected the module {missing.name}, found none; `make setup` installs it into .venv, "
        problem += "then run .venv/bin/python -m train"
    except (TrainError, OSError) as error:
        problem = str(error)
    else:
        return 0
    print(f"error: {problem}", file=sys.stderr)
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
    """Return a parser of the whole numbers that are `accepted`; `expected` says which, in words."""

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
        "help": "train these of the progression's models (default: all); the export and the report are of these alone",
    },
    "--model": {"dest": "name", "metavar": "MODEL", "default": "Model_3", "help": "(default: Model_3)"},
    "--seed": {"type": SEED, "default": 1, "help": "of weights, order and augmentation (default: 1)"},
    "--seeds": {"type": POSITIVE, "default": 10, "metavar": "N", "help": "how many (default: 10)"},
    "--epochs": {"type": POSITIVE, "metavar": "N", "help": "instead of the recipe's 15; the schedule spans them"},
    "--device": {
        "dest": "device_name",
        "choices": ["auto", "cpu", "cuda"],
        "default": "auto",
        "help": "(default: auto, a GPU where there is one)",
    },
    "--out": {"type": Path, "default": Path("artifacts"), "help": "the folder written to (default: artifacts)"},
    "--data": {
        "dest": "data_directory",
        "metavar": "DATA",
        "type": Path,
        "default": paths.DATA,
        "help": "a folder with the four IDX files, gzipped or plain, of MNIST or a set of its form "
        "(default: data/mnist)",
    },
    "--force": {"action": "store_true", "help": "release a model under the goal's test accuracy too"},
}


def _set_up_process() -> None:
    """End at once, and in one line, at Ctrl-C or SIGTERM; let no output that cannot be written end the training."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as a shell's background jobs have SIGINT
            signal.signal(number, _interrupt)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed: the next file that is opened would take its number
            stream = open(os.devnull, "w")  # noqa: SIM115
        stream.flush()
        output = io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
        text = io.TextIOWrapper(output, encoding=stream.encoding, errors="backslashreplace", line_buffering=True)
        setattr(sys, name, text)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """End the process here: an exception can be swallowed, as it is where torch imports numpy.

    Nothing is lost, since every file is written whole; child processes end with this one.
    """
    with suppress(OSError):
        os.write(2, b"\ninterrupted: what was finished is kept, and the same command goes on from there\n")
    os._exit(128 + number)


class _Output(io.FileIO):
    """A standard stream that drops what it cannot write, as when its reader has gone (`| head`)."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError:
            return memoryview(content).nbytes


if __name__ == "__main__":
    _set_up_process()
    sys.exit(main())
