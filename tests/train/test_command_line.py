"""The command `python -m train`: its files, its output, its error messages, and resuming after an interruption."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from model.cores import available_cores
from tests.polling import wait
from tests.processes import alive
from train.__main__ import main
from train.files import locked
from train.paths import ROOT

MODELS = ("Model_2", "Model_3")
EPOCHS = 8


def options(data: Path, out: Path, *models: str, epochs: int = EPOCHS) -> list[str]:
    return [*map(str, ("--models", *(models or MODELS), "--epochs", epochs, "--data", data, "--out", out))]


@pytest.mark.slow
def test_run_writes_checkpoints_report_and_export(trained):
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
    }


@pytest.mark.slow
def test_run_prints_target_recipe_and_results_of_each_model(subset, tmp_path, capfd):
    assert main([*options(subset, tmp_path, "Model_2", epochs=1), "--set", "learning_rate=0.05"]) == 0
    output = capfd.readouterr().out
    for line in (
        "--- Starting training for Model_2 ---",
        "Target:\n  - Stay below 8,000 parameters",
        "Recipe: 1 epoch of SGD, momentum 0.9, learning rate 0.05, batch size 64; no augmentation",
        "Total params: 6,664",
        "Verified on 300 test images",
        f"Report: {tmp_path / 'report.md'}",
    ):
        assert line in output
    epoch = r"^Model_2, seed 1, epoch 1/1; .*; Test set: Average loss: \d\.\d{4}, Accuracy: \d+/300 \(\d+\.\d{2}%\)$"
    assert output.index("Total params") < re.search(epoch, output, re.MULTILINE).start()


@pytest.mark.slow
def test_finished_run_is_not_trained_again(trained, subset, tmp_path, capfd):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    assert main(options(subset, tmp_path, epochs=2)) == 0
    assert "Test set:" not in capfd.readouterr().out


def test_model_over_the_parameter_budget_is_not_exported_and_other_settings_do_not_overwrite_it(tiny, tmp_path, capfd):
    arguments = [*options(tiny, tmp_path, "Model_1", epochs=4), "--device", "cpu"]
    assert main([*arguments, "--seed", "7"]) == 0
    assert "Nothing exported: no model of this run has at most 8,000 parameters" in capfd.readouterr().out
    assert not (tmp_path / "release").exists()
    checkpoint = (tmp_path / "Model_1" / "checkpoint.json").read_bytes()
    assert json.loads(checkpoint)["settings"]["seed"] == 7
    other = tmp_path / "other" / tiny.name  # another data set with the same name
    shutil.copytree(tiny, other)
    images = bytearray((other / "t10k-images-idx3-ubyte").read_bytes())
    images[-1] ^= 1
    (other / "t10k-images-idx3-ubyte").write_bytes(images)
    for name, changed in (("seed", arguments), ("data", [*arguments, "--seed", "7", "--data", str(other)])):
        assert main(changed) == 1
        assert f"Model_1 holds a training with {name}" in capfd.readouterr().err
    assert (tmp_path / "Model_1" / "checkpoint.json").read_bytes() == checkpoint


def test_verify_prints_its_result(trained, subset, capfd):
    assert main(["verify", str(trained / "release"), "--data", str(subset)]) == 0
    assert "verified on 300 test images: every label equals PyTorch's" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "Model_9"], "expected one of the models Model_1, Model_2, Model_3; found Model_9"),
        (["--data", "{tmp}/none"], "cannot read {tmp}/none/train-images-idx3-ubyte.gz: No such file"),
        (["--set", "rate=1"], "--set rate=1: expected FIELD=VALUE with FIELD one of learning_rate, batch_size, epochs"),
        (["--set", "augmentation.degrees=1"], "--set augmentation.degrees=1: expected FIELD=VALUE with FIELD one of"),
        (["--set", "batch_size=0"], "--set batch_size=0: expected a JSON value of the field's type; error"),
        (["--set", "learning_rate=fast"], "--set learning_rate=fast: expected a JSON value of the field's type; error"),
        (["--out", "{tmp}/file/out"], "cannot write {tmp}/file/out/.lock: Not a directory"),
        (["--data", "{tmp}/file"], "cannot read {tmp}/file/train-images-idx3-ubyte.gz: Not a directory"),
        (["--models", "Model_3", "verify"], "expected one of the models Model_1, Model_2, Model_3; found verify"),
        (["verify", "{tmp}"], "cannot read {tmp}/manifest.json: No such file or directory"),
        (["release", "--out", "{tmp}"], "cannot read {tmp}/release/manifest.json: No such file or directory"),
        pytest.param(
            ["--device", "cuda"],
            "--device cuda: expected a CUDA GPU, found none",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="expected no GPU, found one"),
        ),
    ],
)
def test_error_is_one_line_that_names_the_cause(arguments, message, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert main([argument.format(tmp=tmp_path) for argument in arguments]) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"error: {message.format(tmp=tmp_path)}")
    assert error.count("\n") == 1


NUMBER = "argument {}: expected a whole number from {} to 4294967295, found {}\n"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        *((["--epochs", found], NUMBER.format("--epochs", 1, found)) for found in ("1.5", "0", "-1", "many")),
        *((["--seed", found], NUMBER.format("--seed", 0, found)) for found in ("-1", "100000000000000000000")),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
        (["--seed", "2", "consistency"], "unrecognized arguments: consistency"),  # consistency would ignore --seed
        (["verify"], "the following arguments are required: FOLDER"),
    ],
)
def test_invalid_options_exit_with_status_2_and_the_usage(arguments, error, capfd):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    found = capfd.readouterr().err
    assert "usage: python -m train" in found
    assert error in found


def test_help_does_not_import_torch():
    script = "import atexit, os, sys; from train.__main__ import main; "
    script += "atexit.register(lambda: os._exit('torch' in sys.modules)); main(['--help'])"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    ("module", "error"),
    [
        ("fcntl", f"expected Linux, macOS or WSL, found {platform.system()}: use Docker (docs/containers.md)"),
        ("torch", "expected the module torch, found none; `make setup` installs it"),
    ],
)
def test_a_missing_module_is_one_line_that_says_what_to_do(module, error):
    script = f"import sys; sys.modules['{module}'] = None; from train.__main__ import main; sys.exit(main([]))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {error}")
    assert run.stderr.count("\n") == 1


def command(data: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "train", *options(data, out)]


def weights(out: Path) -> list[bytes]:
    paths = [*(Path(model, f"epoch-{EPOCHS:02d}.safetensors") for model in MODELS), Path("release/model.safetensors")]
    return [(out / path).read_bytes() for path in paths]


def checkpoint_files(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in out.glob("Model_*/*") if path.suffix != ".tmp"}


def saved_epochs(out: Path) -> list[int]:
    """Return the number of epochs in the checkpoint of each model."""
    paths = [out / model / "checkpoint.json" for model in MODELS]
    return [len(json.loads(path.read_text())["history"]) if path.exists() else 0 for path in paths]


def interrupt(data: Path, out: Path, number: signal.Signals, after: int) -> tuple[int, str]:
    """Start a training, send it the signal `number` after epoch `after`, and return its exit status and stderr.

    The training cannot end before the signal, not even on a fast machine, because it cannot write its next checkpoint:
    the temporary file of this checkpoint is a named pipe without a reader, so opening the file for writing blocks.
    """
    pipes = [out / model / f".epoch-{after + 1:02d}.safetensors.tmp" for model in MODELS]
    for pipe in pipes:
        pipe.parent.mkdir(exist_ok=True)
        os.mkfifo(pipe)
    process = subprocess.Popen(
        command(data, out),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # the run gets its own process group
        # Handle SIGINT, as in a terminal or a container. Background jobs of a shell would ignore SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        wait(lambda: process.poll() is not None or min(saved_epochs(out)) >= after, 120, lambda: f"{saved_epochs(out)}")
        assert process.poll() is None, process.stderr.read()
        # Ctrl-C in a terminal sends SIGINT to the whole group. `docker stop` sends SIGTERM to the first process only.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, error = process.communicate(timeout=60)
        assert saved_epochs(out) == [after, after], "the run did not block at its next checkpoint"
        wait(lambda: not alive(process.pid), 60, lambda: "a process of the run is still running")
    finally:
        with suppress(ProcessLookupError):  # all processes of the group have exited, as expected
            os.killpg(process.pid, signal.SIGKILL)
    for pipe in pipes:
        pipe.unlink()
        pipe.write_bytes(b"the start of a checkpoint")  # as if the write had been interrupted by a kill
    return process.returncode, error


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory) -> Path:
    """Return the folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("uninterrupted")
    subprocess.run(command(tiny, out), cwd=ROOT, check=True, capture_output=True)
    return out


@pytest.mark.slow
@pytest.mark.skipif(available_cores() < 2, reason="needs two cores to train two models in parallel")
def test_interrupted_and_resumed_run_gives_the_weights_of_an_uninterrupted_run(uninterrupted, tiny, tmp_path, capfd):
    """Each run resumes the previous run. Ctrl-C, SIGTERM, SIGKILL and an unwritable file end one run each."""
    for after, number in ((2, signal.SIGINT), (4, signal.SIGTERM)):
        code, error = interrupt(tiny, tmp_path, number, after)
        assert code == 128 + number
        assert "interrupted: finished epochs are saved; run the same command again to resume" in error
        assert "Traceback" not in error
    code, _ = interrupt(tiny, tmp_path, signal.SIGKILL, 6)
    assert code == -signal.SIGKILL
    before = checkpoint_files(tmp_path)
    # Instead of a full disk: a folder has the name of the next temporary file, so this file cannot be written.
    blocked = [tmp_path / model / ".epoch-07.safetensors.tmp" for model in MODELS]
    for path in blocked:
        path.unlink()
        path.mkdir()
    assert main(options(tiny, tmp_path)) == 1
    error = capfd.readouterr().err
    assert re.fullmatch(rf"error: cannot write {tmp_path}/Model_\d/epoch-07.safetensors: Is a directory\n", error)
    assert checkpoint_files(tmp_path) == before
    for path in blocked:
        path.rmdir()
    assert main(options(tiny, tmp_path)) == 0
    assert weights(tmp_path) == weights(uninterrupted)


def test_second_run_in_the_same_folder_is_refused(subset, tmp_path, capfd):
    with locked(tmp_path):
        assert main(["--data", str(subset), "--out", str(tmp_path)]) == 1
    assert capfd.readouterr().err == (
        f"error: {tmp_path} is in use by another run: wait for its end, or choose another --out\n"
    )


@pytest.mark.slow
def test_failed_verification_writes_the_report_but_no_export(subset, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("train.export.TOLERANCE", 0.0)
    assert main(options(subset, tmp_path, "Model_3", epochs=1)) == 1
    assert "error: the ONNX graph does not predict as the network" in capfd.readouterr().err
    assert not (tmp_path / "release").exists()
    assert "Nothing was exported" in (tmp_path / "report.md").read_text()


def test_error_if_the_gpu_runs_out_of_memory_is_one_line(subset, tmp_path, capfd, monkeypatch):
    def fit(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 MiB")

    monkeypatch.setattr("train.trainings.fit", fit)
    assert main(["--models", "Model_2", "--data", str(subset), "--out", str(tmp_path)]) == 1
    assert capfd.readouterr().err == (
        "error: the GPU has too little memory; use --device cpu: CUDA out of memory. Tried to allocate 20.00 MiB\n"
    )


# Runs `python -m train` and sends a signal to this process during the import of numpy. torch imports numpy in C++ code
# that drops exceptions. If the signal's handler raised an exception, the run would go on and crash later.
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
def test_signal_during_the_imports_stops_the_run(number, tiny, tmp_path):
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
