"""Trainings in parallel: they share the threads, print directly to the terminal, and leave no process running."""

import os
import pty
import signal
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from model.cores import available_cores
from tests.polling import wait
from tests.processes import alive, children
from train import TrainError, trainings
from train.data import load
from train.paths import ROOT
from train.progression import experiments
from train.trainings import Training, train_all

pytestmark = pytest.mark.slow  # each test starts processes that import torch


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def two_trainings(out: Path) -> list[Training]:
    return [Training(one, 1, out / one.name, "cpu") for one in experiments(["Model_2", "Model_3"], ["epochs=4"])]


def test_they_run_in_parallel_and_each_has_its_threads_and_a_line_per_epoch(tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(trainings, "max_workers", lambda *_: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        trained, errors = train_all(two_trainings(tmp_path), load(tiny))
    finally:
        torch.set_num_threads(before)
    assert errors == {}
    threads = "2 threads" if available_cores() > 1 else "1 thread"
    assert [one.provenance["device"].partition("), ")[2] for one in trained] == [threads] * 2
    lines = [line for line in capfd.readouterr().out.splitlines() if "Test set: Average loss: " in line]
    epochs = [f"{name}, seed 1, epoch {epoch}/4" for name in ("Model_2", "Model_3") for epoch in range(1, 5)]
    assert sorted(line.partition(";")[0] for line in lines) == epochs


def kill_child(training):
    os.kill(os.getpid(), signal.SIGKILL)


def test_one_that_is_killed_is_one_line(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "max_workers", lambda *_: 2)
    monkeypatch.setattr(trainings, "_train_in_child", kill_child)
    with pytest.raises(TrainError, match="a training process ended: the kernel may have killed it for lack of memory"):
        train_all(two_trainings(tmp_path), load(tiny))


def command(data: Path, out: Path, *options: str) -> list[str]:
    folders = ["--data", str(data), "--out", str(out)]
    return [sys.executable, "-m", "train", "consistency", "--device", "cpu", *folders, *options]


@pytest.mark.parametrize("training", [False, True], ids=["importing", "training"])
def test_children_end_with_a_parent_that_is_killed(training, tiny, tmp_path):
    parent = subprocess.Popen(
        command(tiny, tmp_path, "--seeds", "2", "--epochs", "2000"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        if training:
            next(line for line in parent.stdout if "Test set:" in line)
        else:  # the three children: two trainings and multiprocessing's resource tracker
            wait(lambda: len(children(parent.pid)) == 3, 240, lambda: "the children have not started")
        parent.kill()
        parent.wait()
        wait(lambda: not alive(parent.pid), 60, lambda: "a child is still running")
    finally:
        parent.stdout.close()
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)


def test_a_terminal_has_a_progress_bar(subset, tmp_path):
    reader, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))  # without a width, tqdm shows no bar
    one = command(subset, tmp_path, "--seeds", "1", "--epochs", "1")
    subprocess.run(one, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=terminal)
    os.set_blocking(reader, False)
    shown = os.read(reader, 100_000).decode()
    os.close(reader)
    os.close(terminal)
    assert "Model_3, seed 1, epoch 1/1: " in shown
    assert "Batch_id=27 Accuracy=" in shown
