"""`python -m train` as a user meets it: what it leaves, how it goes on, what it says when it cannot."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from train.__main__ import main

ROOT = Path(__file__).parents[2]


def command(*options: object) -> list[str]:
    return [sys.executable, "-m", "train", *map(str, options)]


def test_leaves_checkpoints_report_and_export(trained):
    found = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    assert found == {
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
        "report/confusion.png",
        "report/mistakes.png",
    }


def test_says_what_each_model_tries_and_reaches(subset, tmp_path, capfd):
    options = ["--models", "Model_2", "--epochs", "1", "--data", str(subset), "--out", str(tmp_path)]
    assert main(options) == 0
    output = capfd.readouterr()
    for line in (
        "--- Starting training for Model_2 ---",
        "Target:\n  - Come under 8,000 parameters",
        "Recipe: 1 epoch of SGD, momentum 0.9, rate 0.01, batch 64; no augmentation",
        "Total params: 6,664",
        "EPOCH: 1/1",
        "Test set: Average loss: ",
        "Verified on 300 test images",
        f"Report: {tmp_path / 'report.md'}",
    ):
        assert line in output.out
    assert "Loss=" in output.err
    assert "Batch_id=24 Accuracy=" in output.err


def test_finished_run_is_not_trained_again(trained, subset, tmp_path, capfd):
    for path in trained.rglob("*"):
        if path.is_file():
            (tmp_path / path.relative_to(trained)).parent.mkdir(exist_ok=True)
            (tmp_path / path.relative_to(trained)).write_bytes(path.read_bytes())
    options = ["--models", "Model_2", "Model_3", "--epochs", "2", "--data", str(subset), "--out", str(tmp_path)]
    assert main(options) == 0
    assert "EPOCH" not in capfd.readouterr().out


def test_model_over_the_budget_is_not_exported(subset, tmp_path, capfd):
    options = ["--models", "Model_1", "--epochs", "1", "--data", str(subset), "--out", str(tmp_path)]
    assert main(options) == 0
    assert "Nothing exported: no model trained here has at most 8,000 parameters" in capfd.readouterr().out
    assert not (tmp_path / "release").exists()


def test_verify_prints_the_outcome(trained, subset, capfd):
    assert main(["verify", str(trained / "release"), "--data", str(subset)]) == 0
    assert "verified on 300 test images: every label as PyTorch's" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "Model_9"], "expected a model of Model_1, Model_2, Model_3; found Model_9"),
        (["--data", "{tmp}/none"], "{tmp}/none/train-images-idx3-ubyte.gz: expected the file"),
        (["--out", "{tmp}/file/out"], "cannot write {tmp}/file/out/.writable: Not a directory"),
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


@pytest.mark.parametrize("options", [["--epochs", "0"], ["--seed", "-1"], ["--device", "tpu"], ["--epoch", "3"]])
def test_wrong_usage_is_refused(options, capfd):
    with pytest.raises(SystemExit) as stop:
        main(options)
    assert stop.value.code == 2
    assert "usage: python -m train" in capfd.readouterr().err


def test_help_comes_without_loading_torch():
    script = "import sys, train.__main__ as command; command._parser().format_help(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.slow
def test_full_disk_is_one_clear_line_and_keeps_the_last_checkpoint(subset, tmp_path):
    options = ["--models", "Model_3", "--data", subset, "--out", tmp_path]
    subprocess.run(command(*options, "--epochs", "1"), cwd=ROOT, check=True, capture_output=True)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    # A limit on the size of files stands in for the disk: the system answers a write beyond it as it does a full one.
    limited = subprocess.run(
        command("--models", "Model_2", *options[2:], "--epochs", "1"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert limited.returncode == 1
    assert f"error: cannot write {tmp_path}/Model_2/epoch-01.safetensors: File too large" in limited.stderr
    assert "Traceback" not in limited.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def uninterrupted(subset, tmp_path_factory):
    out = tmp_path_factory.mktemp("uninterrupted")
    subprocess.run(training(subset, out), cwd=ROOT, check=True, capture_output=True)
    return (out / "release" / "model.safetensors").read_bytes()


def training(subset: Path, out: Path) -> list[str]:
    return command("--models", "Model_3", "--epochs", "8", "--data", subset, "--out", out)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_interrupted_run_ends_with_the_weights_of_one_never_interrupted(number, subset, tmp_path, uninterrupted):
    checkpoint = tmp_path / "Model_3" / "checkpoint.json"
    # As in a terminal or a container, not with the signals that a shell's background jobs ignore.
    process = subprocess.Popen(
        training(subset, tmp_path),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not checkpoint.exists() or len(json.loads(checkpoint.read_text())["history"]) < 3:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert len(json.loads(checkpoint.read_text())["history"]) < 8, "the run was over before it was interrupted"
    assert "Traceback" not in error
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert "interrupted: the same command goes on from the last whole epoch" in error
    subprocess.run(training(subset, tmp_path), cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "release" / "model.safetensors").read_bytes() == uninterrupted
