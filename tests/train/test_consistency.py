"""One model over many seeds: every seed arrives, is run once, and is counted honestly."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.polling import wait
from train.__main__ import main
from train.consistency import summarise
from train.progression import PROGRESSION

ROOT = Path(__file__).parents[2]
# One worker, so that one Ray cluster runs at a time.
pytestmark = pytest.mark.xdist_group("ray")
EPOCHS = 4  # the fewest that `tiny` can be trained for


def options(data: Path, out: Path, *, seeds: int, epochs: int = EPOCHS) -> list[str]:
    settings = ["--model", "Model_3", "--seeds", seeds, "--epochs", epochs, "--device", "cpu"]
    return ["consistency", *map(str, settings), "--data", str(data), "--out", str(out)]


def trials_on(node) -> list[int]:
    """Return the processes that run a trial on `node`: children of its raylet."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    return [int(pid) for pid in children if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::_trial")]


def stop_trial_on(node) -> int | None:
    """Stop a process in the midst of a trial on `node` and return it; None where none runs."""
    for pid in trials_on(node):
        os.kill(pid, signal.SIGSTOP)
        if pid in trials_on(node):
            return pid
        os.kill(pid, signal.SIGCONT)  # the trial was over
    return None


def trial(accuracy: float) -> dict:
    return {"history": [{"test_accuracy": accuracy, "validation_accuracy": 0.99}]}


def test_summary_counts_the_seeds_that_reach_the_goal():
    figures = summarise([trial(accuracy) for accuracy in (0.9939, 0.9940, 0.9956)], PROGRESSION["Model_3"])
    assert figures["mean"] == pytest.approx(0.9945)
    assert figures["standard_deviation"] == pytest.approx(0.00095394, rel=1e-4)
    assert (figures["worst"], figures["best"]) == (0.9939, 0.9956)
    assert (figures["seeds"], figures["reached_target"]) == (3, 2)


@pytest.mark.slow
def test_runs_every_seed_once_and_writes_table_plot_and_figures(tiny, tmp_path, capfd):
    assert main(options(tiny, tmp_path, seeds=2)) == 0
    folder = tmp_path / "consistency"
    figures = json.loads((folder / "consistency.json").read_text())
    assert [trial["settings"]["seed"] for trial in figures["trials"]] == [1, 2]
    assert [len(trial["history"]) for trial in figures["trials"]] == [EPOCHS, EPOCHS]
    assert all(trial["source_revision"] and trial["versions"]["torch"] for trial in figures["trials"])
    assert (folder / "consistency.png").read_bytes().startswith(b"\x89PNG")
    table = (folder / "consistency.md").read_text()
    for trial in figures["trials"]:
        assert f"| {100 * trial['history'][-1]['test_accuracy']:.2f} % |" in table

    first = folder / "trials" / "Model_3-seed-001.json"
    before = first.read_bytes(), first.stat().st_mtime_ns
    capfd.readouterr()
    assert main(options(tiny, tmp_path, seeds=3)) == 0
    output = capfd.readouterr().out
    assert "2 of 3 seeds were done before" in output
    assert output.count(f"at epoch {EPOCHS}\n") == 1
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert json.loads((folder / "consistency.json").read_text())["seeds"] == 3

    assert main(options(tiny, tmp_path, seeds=3, epochs=EPOCHS + 1)) == 1
    assert f"holds a training with epochs {EPOCHS}, this one has epochs {EPOCHS + 1}" in capfd.readouterr().err


def test_no_cluster_at_the_address_is_one_clear_line(tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(options(tiny, tmp_path, seeds=1)) == 1
    assert capfd.readouterr().err == "error: RAY_ADDRESS: expected a Ray cluster at 127.0.0.1:1, found none\n"


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:1:1"])
def test_address_that_is_none_is_one_clear_line(address, tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert main(options(tiny, tmp_path, seeds=1)) == 1
    assert capfd.readouterr().err.endswith(f"error: RAY_ADDRESS: expected a Ray cluster at {address}, found none\n")


@pytest.mark.slow
def test_terminated_run_says_so_and_keeps_what_is_done(tiny, tmp_path):
    process = subprocess.Popen(
        # So many seeds that they are not done before the signal, however fast the machine is: after the first it ends.
        [sys.executable, "-m", "train", *options(tiny, tmp_path, seeds=200)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().startswith("seed ")
        process.terminate()
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert error.endswith("interrupted: what was finished is kept, and the same command goes on from there\n")
    assert list((tmp_path / "consistency" / "trials").iterdir())


@pytest.mark.slow
def test_every_seed_arrives_though_a_node_of_the_cluster_is_killed(tiny, tmp_path):
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    driver = stopped = None
    try:
        doomed = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        driver = subprocess.Popen(
            [sys.executable, "-m", "train", *options(tiny, tmp_path, seeds=6, epochs=10)],
            cwd=ROOT,
            env={**os.environ, "RAY_ADDRESS": cluster.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        trials = tmp_path / "consistency" / "trials"

        def running(condition):
            assert driver.poll() is None, driver.stderr.read()
            return condition()

        def said():
            return f"{sorted(trials.glob('*'))}"

        # A trial that is stopped is still running when its node is killed, however fast the machine is.
        stopped = wait(lambda: running(lambda: stop_trial_on(doomed)), 120, said)
        wait(lambda: running(lambda: len(list(trials.glob("*.json"))) >= 2), 120, said)
        cluster.remove_node(doomed, allow_graceful=False)
        assert len(list(trials.glob("*.json"))) < 6, "the seeds were done before the node was killed"
        output, error = driver.communicate(timeout=120)
    finally:
        if driver:
            driver.kill()
        if stopped:
            with suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGKILL)
        cluster.shutdown()
    assert driver.returncode == 0, error
    assert [
        trial["settings"]["seed"] for trial in json.loads((trials.parent / "consistency.json").read_text())["trials"]
    ] == [1, 2, 3, 4, 5, 6]
    assert "n = 6 seeds" in output
