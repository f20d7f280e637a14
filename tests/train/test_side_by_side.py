"""Tasks in processes of their own look as if one had run after the other, and none outlives what it was for."""

import os
import signal
import sys
import time
from functools import partial

import pytest
import torch

from tests.polling import wait
from train.errors import DivergenceError, TrainError
from train.side_by_side import side_by_side

pytestmark = pytest.mark.slow  # each starts processes that import torch


def meet(own, other):
    """Leave a file and wait for the other's: neither can do so alone."""
    own.touch()
    wait(other.exists, 60, lambda: f"{other} is not there")


def count(name, pause):
    for number in range(3):
        print(name, number, flush=True)
        print(name, "aside", file=sys.stderr)
        time.sleep(pause)


def say_threads():
    print(torch.get_num_threads())


def fail(message):
    raise DivergenceError(message)


def find_no_file():
    open("/none").close()


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def stumble():
    raise ZeroDivisionError


def test_what_they_print_is_in_order(capfd):
    side_by_side([partial(count, "first", 1), partial(count, "second", 0), partial(count, "third", 0)])
    output = capfd.readouterr()
    assert output.out.split("\n") == [*(f"{name} {n}" for name in ("first", "second", "third") for n in range(3)), ""]
    assert output.err.count("aside") == 9


@pytest.mark.skipif(torch.get_num_threads() < 2, reason="one core")
def test_they_run_at_once(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    side_by_side([partial(meet, one, other), partial(meet, other, one)])


def test_they_share_the_threads(capfd):
    side_by_side([say_threads, say_threads])
    assert capfd.readouterr().out == f"{max(1, torch.get_num_threads() // 2)}\n" * 2


def test_the_first_error_in_their_order_is_raised_and_ends_the_rest():
    started = time.monotonic()
    with pytest.raises(DivergenceError, match=r"^became nan$"):
        side_by_side([partial(fail, "became nan"), partial(count, "next", 100), partial(fail, "later")])
    assert time.monotonic() - started < 60


def test_an_error_of_the_system_is_raised_as_it_is():
    with pytest.raises(FileNotFoundError, match="/none"):
        side_by_side([find_no_file])


def test_one_that_is_killed_is_an_error():
    with pytest.raises(TrainError, match="ended without an outcome"):
        side_by_side([die])


def test_a_bug_keeps_its_traceback(capfd):
    with pytest.raises(TrainError, match="ended without an outcome"):
        side_by_side([stumble])
    assert "ZeroDivisionError" in capfd.readouterr().err
