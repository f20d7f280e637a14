"""The command consistency: every seed is trained exactly once and counted, also after divergence or interruption."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.polling import wait
from train.__main__ import main
from train.consistency import command_line, sentence, summarise
from train.errors import DivergenceError
from train.loop import fit
from train.paths import ROOT
from train.progression import PROGRESSION
from train.provenance import source_revision

pytestmark = pytest.mark.xdist_group("ray")  # in one pytest process, with one Ray cluster
EPOCHS = 4  # the minimum for `tiny`


def options(data: Path, out: Path, *, seeds: int, epochs: int = EPOCHS) -> list[str]:
    settings = ["--model", "Model_3", "--seeds", seeds, "--epochs", epochs, "--device", "cpu"]
    return ["consistency", *map(str, settings), "--data", str(data), "--out", str(out)]


def finished(out: Path) -> list[Path]:
    """Return the checkpoints of the seeds with all epochs."""
    paths = (out / "consistency" / "trials").glob("*/checkpoint.json")
    return [path for path in paths if len(json.loads(path.read_text())["history"]) == EPOCHS]


def consistency_json(out: Path) -> dict:
    return json.loads((out / "consistency" / "consistency.json").read_text())


def trained_seeds(figures: dict) -> list[int]:
    return [trial["settings"]["seed"] for trial in figures["trials"]]


def test_summary_counts_the_seeds_that_reach_the_target():
    best = {"test_accuracy": 1.0, "validation_accuracy": 1.0}  # but not the last
    trials = [
        {"history": [best, {"test_accuracy": accuracy, "validation_accuracy": 0.99}]}
        for accuracy in (0.9939, 0.9940, 0.9956)
    ]
    figures = summarise(trials, PROGRESSION["Model_3"])
    assert figures["mean"] == pytest.approx(0.9945)
    assert figures["standard_deviation"] == pytest.approx(0.00095394, rel=1e-4)
    assert (figures["worst"], figures["best"]) == (0.9939, 0.9956)
    assert figures["validation_mean"] == pytest.approx(0.99)
    assert (figures["seeds"], figures["reached_target"]) == (3, 2)
    assert "99.45 % ± 0.10 % (mean ± standard deviation, n = 3 seeds), worst 99.39 %" in sentence(figures)


def test_one_seed_has_no_standard_deviation():
    trial = {"history": [{"test_accuracy": 0.9956, "validation_accuracy": 0.99}]}
    assert "last epoch 99.56 % (n = 1 seed), worst 99.56 %" in sentence(summarise([trial], PROGRESSION["Model_3"]))


def test_command_line_can_be_repeated_if_the_data_folder_has_a_space():
    assert command_line("frontier", 4, Path("my data")) == "python -m train frontier --epochs 4 --data 'my data'"


@pytest.mark.slow
def test_trains_every_seed_once_and_writes_table_plot_and_figures(tiny, tmp_path, capfd):
    assert main(options(tiny, tmp_path, seeds=2)) == 0
    folder = tmp_path / "consistency"
    figures = consistency_json(tmp_path)
    assert trained_seeds(figures) == [1, 2]
    assert [len(trial["history"]) for trial in figures["trials"]] == [EPOCHS, EPOCHS]
    assert (folder / "consistency.png").read_bytes().startswith(b"\x89PNG")
    table = (folder / "consistency.md").read_text()
    for trial in figures["trials"]:
        assert f"| {100 * trial['history'][-1]['test_accuracy']:.2f} % |" in table

    first = folder / "trials" / "Model_3-seed-001" / "checkpoint.json"
    before = first.read_bytes(), first.stat().st_mtime_ns
    capfd.readouterr()
    assert main(options(tiny, tmp_path, seeds=3)) == 0
    output = capfd.readouterr().out
    assert "2 of 3 seeds were finished before" in output
    assert output.count(f"at epoch {EPOCHS}\n") == 1
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert consistency_json(tmp_path)["seeds"] == 3

    assert main(options(tiny, tmp_path, seeds=3, epochs=EPOCHS + 1)) == 1
    assert f"holds a training with epochs {EPOCHS}, this one has epochs {EPOCHS + 1}" in capfd.readouterr().err


def no_cluster(address: str) -> str:
    return f"error: RAY_ADDRESS: expected a Ray cluster at {address}, found none\n"


def test_error_for_an_unused_address_is_one_line(tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(options(tiny, tmp_path, seeds=1)) == 1
    assert capfd.readouterr().err == no_cluster("127.0.0.1:1")


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:1:1"])
def test_invalid_address_is_an_error(address, tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert main(options(tiny, tmp_path, seeds=1)) == 1
    assert capfd.readouterr().err.endswith(no_cluster(address))


@pytest.mark.slow
def test_terminated_run_keeps_the_finished_seeds(tiny, tmp_path):
    process = subprocess.Popen(
        # The signal is sent after the first of 200 seeds, when the run is still running, on a fast machine too.
        [sys.executable, "-m", "train", *options(tiny, tmp_path, seeds=200)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline().startswith("seed ")
        process.terminate()
        _, error = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert error.endswith("interrupted: finished epochs are saved; run the same command again to resume\n")
    assert finished(tmp_path)


def diverge_in_epoch_4(experiment, data, *, seed, **options):
    if seed == 2:
        raise DivergenceError("Model_3, seed 2: the loss became nan in epoch 4, batch 0", epoch=4)
    return fit(experiment, data, seed=seed, **options)


def test_other_seeds_finish_if_one_diverges(tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("train.training.max_workers", lambda *_: 1)
    with monkeypatch.context() as patch:
        patch.setattr("train.training.fit", diverge_in_epoch_4)
        assert main(options(tiny, tmp_path, seeds=3)) == 1
    assert capfd.readouterr().err == "error: 2 of 3 seeds finished; seed 2 diverged in epoch 4\n"
    folder = tmp_path / "consistency"
    table = (folder / "consistency.md").read_text()
    assert "n = 2 seeds" in table
    assert "2 of 3 seeds finished; seed 2 diverged in epoch 4." in table
    assert "| 2 | diverged in epoch 4 | | | |" in table
    assert trained_seeds(consistency_json(tmp_path)) == [1, 3]
    before = {path: path.read_bytes() for path in finished(tmp_path)}
    assert len(before) == 2

    assert main(options(tiny, tmp_path, seeds=3)) == 0
    assert "2 of 3 seeds were finished before" in capfd.readouterr().out
    assert "n = 3 seeds" in (folder / "consistency.md").read_text()
    assert {path: path.read_bytes() for path in before} == before


def test_error_if_no_seed_finishes_is_one_line(tiny, tmp_path, capfd, monkeypatch):
    def fit(*_, seed, **__):
        raise DivergenceError("the loss became nan", epoch=seed)

    monkeypatch.setattr("train.training.max_workers", lambda *_: 1)
    monkeypatch.setattr("train.training.fit", fit)
    assert main(options(tiny, tmp_path, seeds=2)) == 1
    assert capfd.readouterr().err == (
        "error: 0 of 2 seeds finished; seed 1 diverged in epoch 1; seed 2 diverged in epoch 2\n"
    )


def test_each_seed_has_its_source_revision_and_versions(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_REVISION", "0123456789")
    source_revision.cache_clear()
    try:
        assert main(options(tiny, tmp_path, seeds=1)) == 0
    finally:
        source_revision.cache_clear()
    (trial,) = consistency_json(tmp_path)["trials"]
    assert trial["provenance"]["source_revision"] == "0123456789"
    assert trial["provenance"]["versions"]["torch"] == version("torch")
    assert "Source revision: 0123456789." in (tmp_path / "consistency" / "consistency.md").read_text()


@pytest.fixture(scope="module")
def cluster():
    """Return a Ray cluster of two nodes with one CPU each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes(timeout=120)
        yield cluster
    finally:
        cluster.shutdown()


def task_on(node) -> int | None:
    """Return the process of a running task on `node`, a child of its raylet, or None."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    return next(
        (int(p) for p in children if Path(f"/proc/{p}/cmdline").read_bytes().startswith(b"ray::_perform")), None
    )


def stop_task_on(node) -> int | None:
    """Stop the process of a running task on `node` and return it, or None if no task is running."""
    if (pid := task_on(node)) is None:
        return None
    os.kill(pid, signal.SIGSTOP)
    if pid == task_on(node):
        return pid
    os.kill(pid, signal.SIGCONT)  # the task has finished
    return None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_seed_finishes_once_if_a_node_of_the_cluster_is_killed(cluster, tiny, tmp_path):
    node = next(iter(cluster.worker_nodes))
    stopped = None
    driver = subprocess.Popen(
        [sys.executable, "-m", "train", *options(tiny, tmp_path, seeds=6)],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def running(condition):
        assert driver.poll() is None, driver.stderr.read()
        return condition()

    def progress():
        return f"finished: {finished(tmp_path)}"

    try:
        # A stopped task is still running when its node is killed, on a fast machine too.
        stopped = wait(lambda: running(lambda: stop_task_on(node)), 300, progress)
        wait(lambda: running(lambda: len(finished(tmp_path)) >= 2), 300, progress)
        cluster.remove_node(node, allow_graceful=False)
        output, error = driver.communicate(timeout=300)
    finally:
        driver.kill()
        if stopped:
            with suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGKILL)
    assert driver.returncode == 0, error
    figures = consistency_json(tmp_path)
    assert trained_seeds(figures) == [1, 2, 3, 4, 5, 6]
    # The nodes have no checkout; the driver sends them its source revision.
    assert {trial["provenance"]["source_revision"] for trial in figures["trials"]} == {source_revision()}
    assert "n = 6 seeds" in output
    lines = [line for line in output.splitlines() if line.startswith("seed ")]
    assert [line.partition(":")[0] for line in lines] == [f"seed {seed}" for seed in range(1, 7)]
