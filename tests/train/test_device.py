"""The device is picked as asked; compiling helps where it can and never hurts."""

import os
from functools import partial

import pytest
import torch
from torch import nn

from model.cores import available_cores
from model.networks import Model_2
from train.device import check_memory, compiled, describe, pick
from train.errors import SettingsError

SAMPLE = torch.rand(8, 1, 28, 28)


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_auto_takes_the_cpu_and_cuda_is_refused():
    assert pick("auto") == pick("cpu") == torch.device("cpu")
    with pytest.raises(SettingsError, match="expected a CUDA GPU, found none"):
        pick("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_with_a_gpu_auto_takes_it():
    assert pick("auto").type == pick("cuda").type == "cuda"
    assert pick("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("limit", "threads"), [("100000 100000", 1), ("max 100000", 2)])
def test_torch_takes_no_more_threads_than_a_container_may_use(limit, threads, tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr("train.device.available_cores", partial(available_cores, tmp_path))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        pick("cpu")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_container_with_too_little_memory_is_refused(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(f"{600 * 2**20}\n")
    with pytest.raises(SettingsError, match="expected at least 2,000 MiB of memory, found 600 MiB"):
        check_memory(tmp_path)


def test_a_container_without_a_limit_is_taken(tmp_path):
    (tmp_path / "memory.max").write_text("max\n")
    check_memory(tmp_path)


def test_describes_the_processor():
    assert describe(torch.device("cpu")).startswith("CPU (")


def test_no_compiler_means_the_network_as_it_is(monkeypatch, capfd):
    def fail(*_, **__):
        raise RuntimeError("no compiler\nfound")

    monkeypatch.setattr(torch, "compile", lambda _network, **__: fail)
    network = Model_2()
    before = state(network)
    assert compiled(network, SAMPLE) is network
    assert capfd.readouterr().err == (
        "note: torch.compile failed (no compiler found); training goes on uncompiled, slower\n"
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.slow
def test_compiled_network_shares_weights_that_compiling_left_alone():
    # One layer of each kind that a training changes or that differs in training: what compiling takes grows with them.
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1), nn.Flatten())
    before = state(network)
    faster = compiled(network, SAMPLE)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    network.eval()
    torch.testing.assert_close(faster(SAMPLE), network(SAMPLE))
