"""`python -m train` as a user meets it: what it leaves, how it goes on, what it says when it cannot."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.polling import wait
from tests.processes import alive
from train import verify
from train.__main__ import main
from train.lock import locked

ROOT = Path(__file__).parents[2]


def command(*options: object) -> list[str]:
    return [sys.executable, "-m", "train", *map(str, options)]


@pytest.mark.slow
def test_leaves_checkpoints_report_and_export(trained):
    found = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert found == {
        ".lock",
        "Model_2/checkpoint.json",
        "Model_2/epoch-02.safetensors",
        "Model_3/checkpoint.json",
        "Model_3/epoch-02.safetensors",
        "release/digits.onnx",
        "release/model.safetensors",
        "release/manifest.json",
        "report.md",
        "report/progression.png",
        "report/Model_2.png",
        "report/Model_3.png",
        "report/reliability.png",
        "report/confusion.png",
        "report/mistakes.png",
    }


@pytest.mark.slow
def test_says_what_each_model_tries_and_reaches(subset, tmp_path, capfd):
    options = ["--models", "Model_2", "--epochs", "1", "--data", str(subset), "--out", str(tmp_path)]
    assert main(options) == 0
    output = capfd.readouterr()
    for line in (
        "--- Starting training for Model_2 ---",
        "Target:\n  - Stay below 8,000 parameters",
        "Recipe: 1 epoch of SGD, momentum 0.9, learning rate 0.01, batch size 64; no augmentation",
        "Total params: 6,664",
        "EPOCH: 1/1",
        "Test set: Average loss: ",
        "Verified on 300 test images",
        f"Report: {tmp_path / 'report.md'}",
    ):
        assert line in output.out
    assert "Loss=" in output.err
    assert "Batch_id=24 Accuracy=" in output.err


@pytest.mark.slow
def test_finished_run_is_not_trained_again(trained, subset, tmp_path, capfd):
    for path in trained.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(trained)).parent.mkdir(exist_ok=True)
            (tmp_path / path.relative_to(trained)).write_bytes(path.read_bytes())
    options = ["--models", "Model_2", "Model_3", "--epochs", "2", "--data", str(subset), "--out", str(tmp_path)]
    assert main(options) == 0
    assert "EPOCH" not in capfd.readouterr().out


@pytest.mark.slow
def test_model_over_the_budget_is_not_exported(subset, tmp_path, capfd):
    options = ["--models", "Model_1", "--epochs", "1", "--data", str(subset), "--out", str(tmp_path)]
    assert main(options) == 0
    assert "Nothing exported: no model of this run has at most 8,000 parameters" in capfd.readouterr().out
    assert not (tmp_path / "release").exists()


def test_verify_prints_the_outcome(trained, subset, capfd):
    assert main(["verify", str(trained / "release"), "--data", str(subset)]) == 0
    assert "verified on 300 test images: every label equals PyTorch's" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "Model_9"], "expected a model of Model_1, Model_2, Model_3; found Model_9"),
        (["--data", "{tmp}/none"], "{tmp}/none/train-images-idx3-ubyte.gz: expected the file"),
        (["--out", "{tmp}/file/out"], "cannot write {tmp}/file/out/.lock: Not a directory"),
        (["--data", "{tmp}/file"], "{tmp}/file/train-images-idx3-ubyte.gz: expected the file"),
        (["--models", "Model_3", "verify"], "expected a model of Model_1, Model_2, Model_3; found verify"),
        (["verify", "{tmp}"], "cannot read {tmp}/manifest.json: No such file or directory"),
        (["release", "--out", "{tmp}"], "cannot read {tmp}/release/manifest.json: No such file or directory"),
        pytest.param(
            ["--device", "cuda"],
            "--device cuda: expected a CUDA GPU, found none",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there"),
        ),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(options, message, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main([option.format(tmp=tmp_path) for option in options]) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"error: {message.format(tmp=tmp_path)}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--epochs", "0"],
        ["--seed", "-1"],
        ["--seed", "100000000000000000000"],
        ["--device", "tpu"],
        ["--epoch", "3"],
        ["--seed", "2", "consistency"],  # a command comes first, or its options would be lost
        ["verify"],
    ],
)
def test_wrong_usage_is_refused(options, capfd):
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == 2
    assert "usage: python -m train" in capfd.readouterr().err


@pytest.mark.parametrize("found", ["1.5", "0", "-1", "many"])
def test_epochs_that_are_no_positive_whole_number_are_named(found, capfd):
    with pytest.raises(SystemExit):
        main(["--epochs", found])
    assert capfd.readouterr().err.endswith(f"--epochs: expected a positive whole number, found {found}\n")


def test_help_comes_without_loading_torch():
    script = "import atexit, os, sys; from train.__main__ import main; "
    script += "atexit.register(lambda: os._exit('torch' in sys.modules)); main(['--help'])"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_missing_install_is_one_clear_line():
    script = "import sys; sys.modules['torch'] = None; from train.__main__ import main; sys.exit(main([]))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("error: expected the module torch, found none; `make setup` installs it")
    assert run.stderr.count("\n") == 1


MODELS = ("Model_2", "Model_3")
EPOCHS = 8


def options(data: Path, out: Path) -> list[str]:
    return [*map(str, ("--models", *MODELS, "--epochs", EPOCHS, "--data", data, "--out", out))]


def weights(out: Path) -> list[bytes]:
    paths = [*(Path(model, f"epoch-{EPOCHS:02d}.safetensors") for model in MODELS), Path("release/model.safetensors")]
    return [(out / path).read_bytes() for path in paths]


def kept(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in out.glob("Model_*/*") if path.suffix != ".tmp"}


def epochs(out: Path) -> list[int]:
    """Return how many epochs of each model are kept."""
    paths = [out / model / "checkpoint.json" for model in MODELS]
    return [len(json.loads(path.read_text())["history"]) if path.exists() else 0 for path in paths]


def interrupt(data: Path, out: Path, number: signal.Signals, after: int) -> tuple[int, str]:
    """Start a training, send it `number` after epoch `after`, and return its exit code and what it said.

    However fast the machine is, the training is still running then: it cannot write its next checkpoint. In the place
    of the file is a pipe that nobody reads, and the system lets a process wait that opens one to write.
    """
    pipes = [out / model / f".epoch-{after + 1:02d}.safetensors.tmp" for model in MODELS]
    for pipe in pipes:
        pipe.parent.mkdir(exist_ok=True)
        os.mkfifo(pipe)
    process = subprocess.Popen(
        command(*options(data, out)),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own
        # As in a terminal or a container: a shell's background jobs ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        wait(lambda: process.poll() is not None or min(epochs(out)) >= after, 120, lambda: f"{epochs(out)} epochs")
        assert process.poll() is None, process.stderr.read()
        # A terminal's Ctrl-C reaches the whole group, a container's SIGTERM its first process.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, error = process.communicate(timeout=60)
        assert epochs(out) == [after, after], "the run was not held at its next checkpoint"
        wait(lambda: not alive(process.pid), 60, lambda: "a process of the run goes on")
    finally:
        with suppress(ProcessLookupError):  # it has ended, as it should
            os.killpg(process.pid, signal.SIGKILL)
    for pipe in pipes:
        pipe.unlink()
        pipe.write_bytes(b"the start of a checkpoint")  # as a process leaves it that is killed while it writes
    return process.returncode, error


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory) -> Path:
    """Return the folder of a whole training. Its output has a poor encoding, and nobody reads it to the end."""
    out = tmp_path_factory.mktemp("uninterrupted")
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *command(*options(tiny, out))],  # without standard error
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "ascii"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert any(r"every image rotated by up to \xb18\xb0" in line for line in process.stdout)  # ±8°
        process.stdout.close()
        assert process.wait() == 0
    finally:
        process.kill()
    return out


@pytest.mark.slow
@pytest.mark.xdist_group("uninterrupted")
def test_run_interrupted_in_every_way_ends_with_the_weights_of_one_never_interrupted(uninterrupted, tiny, tmp_path):
    """One run after the other goes on from where the one before was ended: by Ctrl-C, by SIGTERM, by SIGKILL."""
    for after, number in ((2, signal.SIGINT), (4, signal.SIGTERM)):
        code, error = interrupt(tiny, tmp_path, number, after)
        assert code == 128 + number
        assert "interrupted: finished epochs are saved; run the same command again to resume" in error
        assert "Traceback" not in error
    code, _ = interrupt(tiny, tmp_path, signal.SIGKILL, 6)
    assert code == -signal.SIGKILL
    before = kept(tmp_path)
    # A limit on the size of files stands in for the disk: the system answers a write beyond it as it does a full one.
    full = subprocess.run(
        command(*options(tiny, tmp_path)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert full.returncode == 1
    assert re.search(rf"error: cannot write {tmp_path}/Model_\d/epoch-0\d.safetensors: File too large\n$", full.stderr)
    assert "Traceback" not in full.stderr
    assert kept(tmp_path) == before
    assert main(options(tiny, tmp_path)) == 0
    assert weights(tmp_path) == weights(uninterrupted)


def test_second_run_on_a_folder_is_refused(subset, tmp_path, capfd):
    with locked(tmp_path):
        assert main(["--data", str(subset), "--out", str(tmp_path)]) == 1
    assert capfd.readouterr().err == (
        f"error: {tmp_path} is in use by another run: wait for it, or choose another --out\n"
    )


@pytest.mark.slow
def test_failed_verification_exports_nothing_but_leaves_the_report(subset, tmp_path, capfd, monkeypatch):
    options = ["--models", "Model_3", "--epochs", "1", "--data", str(subset), "--out", str(tmp_path)]
    monkeypatch.setattr(verify, "TOLERANCE", 0.0)
    assert main(options) == 1
    assert "error: the ONNX graph does not predict as the network" in capfd.readouterr().err
    assert not (tmp_path / "release").exists()
    assert "Nothing was exported" in (tmp_path / "report.md").read_text()


def test_a_gpu_that_runs_out_of_memory_is_one_clear_line(subset, tmp_path, capfd, monkeypatch):
    def fit(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 MiB")

    monkeypatch.setattr("train.training.fit", fit)
    assert main(["--models", "Model_2", "--data", str(subset), "--out", str(tmp_path)]) == 1
    assert capfd.readouterr().err == (
        "error: the GPU has too little memory; use --device cpu: CUDA out of memory. Tried to allocate 20.00 MiB\n"
    )


# Runs `python -m train` and sends it a signal in the midst of importing numpy, which torch does in C++: an exception is
# lost there, and the run crashes later.
INTERRUPTED_IMPORT = """
import os, runpy, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy.exceptions":
            os.kill(os.getpid(), int(os.environ["SIGNAL"]))
sys.meta_path.insert(0, Finder())
runpy.run_module("train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_during_the_imports_ends_the_run(number, tiny, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_IMPORT, *options(tiny, tmp_path)],
        cwd=ROOT,
        env={**os.environ, "SIGNAL": str(int(number))},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert ended.returncode == 128 + number
    assert ended.stderr == "\ninterrupted: finished epochs are saved; run the same command again to resume\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.xdist_group("uninterrupted")
def test_closed_streams_and_an_encoding_without_the_characters_do_not_end_the_training(uninterrupted):
    assert epochs(uninterrupted) == [EPOCHS, EPOCHS]
    assert (uninterrupted / "report.md").exists()
