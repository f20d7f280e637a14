"""Parallel tasks: their results and errors, and no process left running."""

import os
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch

from tests.polling import wait
from tests.processes import alive
from train.errors import TrainError
from train.parallel import run_all
from train.paths import ROOT

pytestmark = pytest.mark.slow  # each starts processes that import torch


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def run(tasks):
    return dict(run_all(tasks, None, max_workers=2))


def meet(own, other, _):
    """Leave a file and wait for the other's: neither can do so alone."""
    own.touch()
    wait(other.exists, 240, lambda: f"{other} is not there")


def add(number, shared):
    return number + shared


def say_threads(_):
    print(torch.get_num_threads())


def find_no_file(_):
    open("/none").close()


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def stumble(_):
    raise ZeroDivisionError


def test_they_run_in_parallel(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    run([partial(meet, one, other), partial(meet, other, one)])


def test_they_share_the_threads(capfd):
    run([say_threads, say_threads])
    assert capfd.readouterr().out == f"{max(1, torch.get_num_threads() // 2)}\n" * 2


def test_an_error_of_the_system_is_raised_as_it_is():
    with pytest.raises(FileNotFoundError, match="/none"):
        run([find_no_file])


def test_one_that_is_killed_is_an_error():
    with pytest.raises(TrainError, match="ended without a result"):
        run([die])


def test_a_bug_keeps_its_traceback(capfd):
    with pytest.raises(TrainError, match="ended without a result"):
        run([stumble])
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize("max_workers", [1, 2])
def test_results_of_what_they_share_arrive_with_their_numbers(max_workers):
    results = dict(run_all([partial(add, 1), partial(add, 2), partial(add, 3)], 10, max_workers=max_workers))
    assert results == {0: 11, 1: 12, 2: 13}


# A module that takes long to import, as torch does, but in a child alone.
SLOW = """
import multiprocessing, os, pathlib, time
if multiprocessing.parent_process():
    pathlib.Path(f"importing-{os.getpid()}").touch()
    time.sleep(1_000)
def task(_): pass
"""


def test_children_that_still_import_end_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    code = "import slow; from train.parallel import run_all; list(run_all([slow.task] * 2, None, max_workers=2))"
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
        start_new_session=True,
    )
    try:
        wait(lambda: len(list(tmp_path.glob("importing-*"))) == 2, 240, lambda: "the children do not import")
        parent.kill()
        parent.wait()
        wait(lambda: not alive(parent.pid), 60, lambda: "a child goes on")
    finally:
        if alive(parent.pid):
            os.killpg(parent.pid, signal.SIGKILL)
