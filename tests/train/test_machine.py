"""The machine: CPU or GPU as requested, and no more threads and memory than a container may use."""

import os
import re
from functools import partial

import pytest
import torch

from model.cores import available_cores
from train import TrainError, machine
from train.__main__ import main
from train.machine import describe, pick


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_auto_selects_the_cpu_and_cuda_is_refused():
    assert pick("auto") == pick("cpu") == torch.device("cpu")
    with pytest.raises(TrainError, match="expected a CUDA GPU, found none"):
        pick("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_with_a_gpu_auto_selects_it():
    assert pick("auto").type == pick("cuda").type == "cuda"
    assert pick("cpu") == torch.device("cpu")


@pytest.fixture
def unusable_gpu(monkeypatch):
    """Make torch report a GPU that torch cannot use."""

    def ones(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", ones)
    pick.cache_clear()
    yield
    pick.cache_clear()


def test_a_gpu_that_torch_cannot_use_is_named_in_one_line(unusable_gpu, capfd):
    found = rf"expected a CUDA GPU, found one that torch {re.escape(torch.__version__)} cannot use \(CUDA error: no "
    assert pick("auto") == pick("auto") == torch.device("cpu")
    assert re.fullmatch(rf"--device auto: {found}.*; training on the CPU\n", capfd.readouterr().out)
    with pytest.raises(TrainError, match=rf"^--device cuda: {found}.*; use --device auto or cpu$"):
        pick("cuda")


@pytest.mark.parametrize(("limit", "threads"), [("100000 100000", 1), ("max 100000", 2)])
def test_torch_uses_no_more_threads_than_a_container_may_use(limit, threads, tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("train.machine.available_cores", partial(available_cores, tmp_path))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    pick.cache_clear()
    try:
        pick("cpu")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_describes_the_processor():
    assert describe(torch.device("cpu")).startswith("CPU (")


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_limit_of_the_container_is_read(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(f"{600 * 2**20}\n")
    assert machine.available_memory(tmp_path) == 600 * 2**20


@pytest.mark.parametrize("limit", ["max\n", f"{2**60}\n"])
def test_without_a_lower_limit_it_is_the_memory_of_the_machine(tmp_path, limit):
    (tmp_path / "memory.max").write_text(limit)
    assert machine.available_memory(tmp_path) == machine.available_memory(tmp_path / "none") > 0


def test_run_with_too_little_memory_is_refused_before_the_training(tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(machine, "available_memory", lambda: 600 * 2**20)
    assert main(["--data", str(tiny), "--out", str(tmp_path)]) == 1
    assert capfd.readouterr().err == "error: expected at least 2,000 MiB of memory, found 600 MiB\n"
    assert not list(tmp_path.iterdir())
