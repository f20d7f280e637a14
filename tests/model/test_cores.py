"""The number of available cores: the CPU affinity, or the limit of a container if that is lower."""

import os

import pytest

from model.cores import available_cores


@pytest.mark.parametrize(
    ("content", "cores"), [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1), ("250000 100000", 2)]
)
def test_limit_of_cgroup_2(tmp_path, monkeypatch, content, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu.max").write_text(content)
    assert available_cores(tmp_path) == (cores or 8)


def test_limit_of_cgroup_1(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(tmp_path) == 3


def test_affinity_without_a_cgroup(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5})
    assert available_cores(tmp_path) == 2
