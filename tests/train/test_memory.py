"""The memory limit of a container, and the error if it is too low."""

import pytest

from train import memory
from train.__main__ import main


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_limit_of_the_container_is_read(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(f"{600 * 2**20}\n")
    assert memory.available_memory(tmp_path) == 600 * 2**20


def test_without_a_limit_it_is_the_memory_of_the_machine(tmp_path):
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory(tmp_path) == memory.available_memory(tmp_path / "none") > 0


def test_run_with_too_little_memory_is_refused_before_the_training(tiny, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(memory, "available_memory", lambda: 600 * 2**20)
    assert main(["--data", str(tiny), "--out", str(tmp_path)]) == 1
    assert capfd.readouterr().err == "error: expected at least 2,000 MiB of memory, found 600 MiB\n"
    assert not list(tmp_path.iterdir())
