"""One model over many seeds: every seed arrives, is run once, and is counted honestly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.__main__ import main
from train.consistency import summarise
from train.progression import PROGRESSION

ROOT = Path(__file__).parents[2]


def options(subset: Path, out: Path, *, seeds: int, epochs: int = 1) -> list[str]:
    settings = ["--model", "Model_3", "--seeds", seeds, "--epochs", epochs, "--device", "cpu"]
    return ["consistency", *map(str, settings), "--data", str(subset), "--out", str(out)]


def trials_on(node) -> list[int]:
    """Return the processes that run a trial on `node`: children of its raylet."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    return [int(pid) for pid in children if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_trial")]


def trial(accuracy: float) -> dict:
    return {"history": [{"test_accuracy": accuracy, "validation_accuracy": 0.99}]}


def test_summary_counts_the_seeds_that_reach_the_goal():
    figures = summarise([trial(accuracy) for accuracy in (0.9939, 0.9940, 0.9956)], PROGRESSION["Model_3"])
    assert figures["mean"] == pytest.approx(0.9945)
    assert figures["standard_deviation"] == pytest.approx(0.00095394, rel=1e-4)
    assert (figures["worst"], figures["best"]) == (0.9939, 0.9956)
    assert (figures["seeds"], figures["reached_target"]) == (3, 2)


@pytest.mark.slow
def test_runs_every_seed_once_and_writes_table_plot_and_figures(subset, tmp_path, capfd):
    assert main(options(subset, tmp_path, seeds=2)) == 0
    folder = tmp_path / "consistency"
    figures = json.loads((folder / "consistency.json").read_text())
    assert [trial["settings"]["seed"] for trial in figures["trials"]] == [1, 2]
    assert [len(trial["history"]) for trial in figures["trials"]] == [1, 1]
    assert (folder / "consistency.png").read_bytes().startswith(b"\x89PNG")
    table = (folder / "consistency.md").read_text()
    for trial in figures["trials"]:
        assert f"| {100 * trial['history'][-1]['test_accuracy']:.2f} % |" in table

    first = folder / "trials" / "Model_3-seed-001.json"
    before = first.read_bytes(), first.stat().st_mtime_ns
    capfd.readouterr()
    assert main(options(subset, tmp_path, seeds=3)) == 0
    output = capfd.readouterr().out
    assert "2 of 3 seeds were done before" in output
    assert output.count("at epoch 1\n") == 1
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert json.loads((folder / "consistency.json").read_text())["seeds"] == 3

    assert main(options(subset, tmp_path, seeds=3, epochs=2)) == 1
    assert "holds a training with epochs 1, this one has epochs 2" in capfd.readouterr().err


def test_no_cluster_at_the_address_is_one_clear_line(subset, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(options(subset, tmp_path, seeds=1)) == 1
    assert capfd.readouterr().err == "error: RAY_ADDRESS: expected a Ray cluster at 127.0.0.1:1, found none\n"


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:1:1"])
def test_address_that_is_none_is_one_clear_line(address, subset, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert main(options(subset, tmp_path, seeds=1)) == 1
    assert capfd.readouterr().err.endswith(f"error: RAY_ADDRESS: expected a Ray cluster at {address}, found none\n")


@pytest.mark.slow
def test_terminated_run_says_so_and_keeps_what_is_done(subset, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "train", *options(subset, tmp_path, seeds=4, epochs=10)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().startswith("seed ")
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert error.endswith("interrupted: what was finished is kept, and the same command goes on from there\n")
    assert list((tmp_path / "consistency" / "trials").iterdir())


@pytest.mark.slow
def test_every_seed_arrives_though_a_node_of_the_cluster_is_killed(subset, tmp_path):
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        doomed = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        driver = subprocess.Popen(
            [sys.executable, "-m", "train", *options(subset, tmp_path, seeds=6, epochs=15)],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": cluster.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        trials, deadline = tmp_path / "consistency" / "trials", time.monotonic() + 240
        while not (len(list(trials.glob("*.json"))) >= 2 and trials_on(doomed)):
            assert driver.poll() is None, driver.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        cluster.remove_node(doomed, allow_graceful=False)
        assert len(list(trials.glob("*.json"))) < 5, "the seeds were done before the node was killed"
        output, error = driver.communicate(timeout=240)
    finally:
        cluster.shutdown()
    assert driver.returncode == 0, error
    assert [
        trial["settings"]["seed"] for trial in json.loads((trials.parent / "consistency.json").read_text())["trials"]
    ] == [1, 2, 3, 4, 5, 6]
    assert "n = 6 seeds" in output
