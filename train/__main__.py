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

# Commands import their modules when they run: importing torch takes seconds, and --help should be fast.


def _imported(module: str, name: str) -> Callable[..., None]:
    """Return a function that imports train.`module` and calls the function `name` in it."""
    return lambda **options: getattr(import_module(f"train.{module}"), name)(**options)


def _verify(folder: Path, data_directory: Path) -> None:
    from train.data import load
    from train.verify import verify

    print(f"{folder}: verified {verify(folder, load(data_directory)).outcome()}")


EXAMPLES = """\
other commands, each with its own --help:
  consistency   train one model with many seeds, and write a table and a plot
  frontier      train Model_3 in several widths, and write the accuracy by number of parameters
  verify        verify an export: hashes, contract, test accuracy, and every test image against PyTorch
  release       verify OUT/release again and copy it to model/release with a model card

examples:
  python -m train
  python -m train --models Model_3 --seed 2 --set learning_rate=0.05 --out artifacts/seed-2
  python -m train consistency --model Model_3 --seeds 10
  python -m train verify artifacts/release

If interrupted, run the same command again: it resumes after the last complete epoch. If RAY_ADDRESS is set, the models
are trained on that Ray cluster."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code: 0 for success, 1 for an error, which is printed, 2 for wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parsers = _parsers()
    name = arguments[0] if arguments and arguments[0] in parsers else ""
    options = vars(parsers[name].parse_args(arguments[1:] if name else arguments))
    command = options.pop("command")
    try:
        import_module("fcntl")  # which Windows lacks
        command(**options)
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


def _parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command; the name of the main one is empty."""
    data, out, training = (argparse.ArgumentParser(add_help=False) for _ in range(3))
    data.add_argument("--data", dest="data_directory", type=Path, default=paths.DATA, help="folder of four IDX files")
    out.add_argument("--out", type=Path, default=Path("artifacts"), help="output folder (default: artifacts)")
    training.add_argument("--epochs", dest="settings", action="append", type=_epochs, metavar="N", help="(default: 15)")
    change = "change a field of the recipe, for example learning_rate=0.05 or augmentation.degrees=10; repeatable"
    training.add_argument("--set", dest="settings", action="append", metavar="FIELD=VALUE", help=change)
    training.set_defaults(settings=[])
    training.add_argument("--device", dest="device_name", choices=["auto", "cpu", "cuda"], default="auto")
    trains = [training, out, data]

    run = _parser("", _imported("run", "run"), "Train the progression, export the best model, write a report.", trains)
    run.add_argument("--models", nargs="+", metavar="MODEL", help="(default: all of the progression)")
    run.add_argument("--seed", type=SEED, default=1, help="seed of weights, order and augmentation (default: 1)")
    seeds = "Train one model with seeds 1 to N and write OUT/consistency/: table, plot and the history of every seed."
    consistency = _parser("consistency", _imported("studies", "consistency"), seeds, trains)
    consistency.add_argument("--model", dest="name", metavar="MODEL", default="Model_3", help="(default: Model_3)")
    consistency.add_argument("--seeds", type=POSITIVE, default=10, metavar="N", help="(default: 10)")
    widths = "Train Model_3 in several widths with several seeds each and write OUT/frontier/: table, plot and figures."
    frontier = _parser("frontier", _imported("studies", "frontier"), widths, trains)
    verify = _parser("verify", _verify, "Verify the export in FOLDER on every image of the test set.", [data])
    verify.add_argument("folder", type=Path, metavar="FOLDER")
    copy = "Verify the export in OUT/release again and copy it to model/release with a model card."
    release = _parser("release", _imported("release", "release"), copy, [out, data])
    release.add_argument("--force", action="store_true", help="also release a model that misses the target accuracy")
    return {"": run, "consistency": consistency, "frontier": frontier, "verify": verify, "release": release}


def _parser(
    name: str, command: Callable[..., None], description: str, parents: list[argparse.ArgumentParser]
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m train {name}".strip(),
        description=description,
        epilog=None if name else EXAMPLES,
        formatter_class=argparse.HelpFormatter if name else argparse.RawDescriptionHelpFormatter,
        parents=parents,
        allow_abbrev=False,
    )
    parser.set_defaults(command=command)
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


def _epochs(text: str) -> str:
    return f"epochs={POSITIVE(text)}"


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """End the process directly: an exception could be swallowed, for example while torch imports numpy.

    Nothing is lost, because every file is written atomically.
    """
    for child in multiprocessing.active_children():
        child.kill()
    with suppress(OSError):
        os.write(2, b"\ninterrupted: finished epochs are saved; run the same command again to resume\n")
    os._exit(128 + number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # a shell's background jobs ignore SIGINT
            signal.signal(number, _interrupt)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
