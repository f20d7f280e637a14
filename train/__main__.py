"""The command line: python -m train [consistency | verify | release]."""

import argparse
import io
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from train import paths
from train.errors import TrainError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code: 0 done, 1 an error that is printed, 2 wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    named = arguments and arguments[0] in COMMANDS
    parser, command = COMMANDS[arguments[0]] if named else (_run_parser, _run)
    options = parser().parse_args(arguments[1:] if named else arguments)
    try:
        command(options)
    except (TrainError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(
            f"error: expected the module {error.name}, found none; `make setup` installs it into .venv, "
            "then run .venv/bin/python -m train",
            file=sys.stderr,
        )
        return 1
    return 0


# What a command needs is imported when it runs: torch takes seconds, and --help should not.


def _run(options: argparse.Namespace) -> None:
    from train.run import run

    run(
        options.models,
        epochs=options.epochs,
        seed=options.seed,
        device_name=options.device,
        data_directory=options.data,
        out=options.out,
    )


def _consistency(options: argparse.Namespace) -> None:
    from train.consistency import consistency

    consistency(
        options.model,
        options.seeds,
        epochs=options.epochs,
        device_name=options.device,
        data_directory=options.data,
        out=options.out,
    )


def _verify(options: argparse.Namespace) -> None:
    from train.data import load
    from train.verify import verify

    export = verify(options.folder, load(options.data))
    print(
        f"{options.folder}: verified on {export.parity.images} test images: every label as PyTorch's, "
        f"probabilities within {export.parity.max_abs_probability_difference:.1e}; {export.manifest.test_correct} right"
    )


def _release(options: argparse.Namespace) -> None:
    from train.release import release

    release(options.out / "release", data_directory=options.data, force=options.force)


def _run_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description="Train the MNIST progression (Model_1, Model_2, Model_3), export the best model within 8,000 "
        "parameters to ONNX, verified, and write a report.",
        epilog="""\
other commands, each with a --help of its own:
  consistency   train one model with many seeds, and write their table and plot
  verify        check an export: hashes, graph, and every test image against PyTorch
  release       promote OUT/release to model/release, verified once more, with a model card

examples:
  python -m train
  python -m train --models Model_3 --seed 2 --out artifacts/seed-2
  python -m train consistency --model Model_3 --seeds 10
  python -m train verify artifacts/release

Interrupted, the same command goes on from the last whole epoch. With RAY_ADDRESS set, the models are trained on that
Ray cluster.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        help="train these of the progression's models (default: all); the export and the report are of these alone",
    )
    parser.add_argument("--seed", type=_seed, default=1, help="of weights, order and augmentation (default: 1)")
    _training_options(parser)
    return parser


def _consistency_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train consistency",
        description="Train one model with seeds 1 to N, in parallel, and write OUT/consistency/: the table "
        "(consistency.md), its plot and every epoch's figures as JSON. Seeds that are done are not run again. With "
        "RAY_ADDRESS set, they are trained on that Ray cluster.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", default="Model_3", help="(default: Model_3)")
    parser.add_argument("--seeds", type=_positive, default=10, metavar="N", help="how many (default: 10)")
    _training_options(parser)
    return parser


def _verify_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train verify",
        description="Check the export in FOLDER against its manifest, and its graph against its weights on every image "
        "of the test set, at four batch sizes and two optimisation levels.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    _data_option(parser)
    return parser


def _release_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train release",
        description="Verify the export in OUT/release once more and copy it to model/release with a model card.",
        allow_abbrev=False,
    )
    parser.add_argument("--force", action="store_true", help="release a model under the goal's test accuracy too")
    _out_option(parser)
    _data_option(parser)
    return parser


def _training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--epochs", type=_positive, metavar="N", help="instead of the recipe's 15; the schedule spans them"
    )
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="(default: auto, a GPU where there is one)",
    )
    _out_option(parser)
    _data_option(parser)


def _out_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("artifacts"), help="the folder written to (default: artifacts)"
    )


def _data_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        default=paths.DATA,
        help="a folder with the four IDX files, gzipped or plain, of MNIST or a set of its form (default: data/mnist)",
    )


def _positive(text: str) -> int:
    number = _whole(text)
    if number is None or number < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, found {text}")
    return number


def _seed(text: str) -> int:
    number = _whole(text)
    if number is None or not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {2**32 - 1}, found {text}")
    return number


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


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
        setattr(
            sys,
            name,
            io.TextIOWrapper(output, encoding=stream.encoding, errors="backslashreplace", line_buffering=True),
        )


def _interrupt(number: int, _frame: FrameType | None) -> None:
    """End the process here: an exception can be swallowed, as it is where torch imports numpy.

    Nothing is lost, since every file is written whole; child processes end with this one.
    """
    with suppress(OSError):
        os.write(2, b"\ninterrupted: what was finished is kept, and the same command goes on from there\n")
    os._exit(128 + number)


class _Output(io.FileIO):
    """A standard stream that drops what it cannot write, as when its reader has gone (`| head`)."""

    def write(self, content: "ReadableBuffer", /) -> int:
        try:
            return super().write(content)
        except OSError:
            return memoryview(content).nbytes


COMMANDS = {
    "consistency": (_consistency_parser, _consistency),
    "verify": (_verify_parser, _verify),
    "release": (_release_parser, _release),
}

if __name__ == "__main__":
    _set_up_process()
    sys.exit(main())
