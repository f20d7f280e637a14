"""The studies: every seed is trained exactly once and counted, also after divergence or interruption."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest

from model.networks import Model_3, parameter_count
from tests.polling import wait
from tests.processes import children
from train import DivergenceError, studies
from train.__main__ import main
from train.loop import fit
from train.machine import source_revision
from train.paths import ROOT
from train.progression import PROGRESSION
from train.studies import command_line, sentence, summarise

pytestmark = pytest.mark.xdist_group("ray")  # all tests of this file run in one process, with one Ray cluster
EPOCHS = 4  # the minimum for the data set `tiny`


def options(data: Path, out: Path, *, seeds: int, epochs: int = EPOCHS) -> list[str]:
    settings = ["--model", "Model_3", "--seeds", seeds, "--epochs", epochs, "--device", "cpu"]
    return ["consistency", *map(str, settings), "--data", str(data), "--out", str(out)]


def finished(out: Path) -> list[Path]:
    """Return the file checkpoint.json of each seed that has finished all epochs."""
    paths = (out / "consistency" / "trials").glob("*/checkpoint.json")
    return [path for path in paths if len(json.loads(path.read_text())["history"]) == EPOCHS]


def consistency_json(out: Path) -> dict:
    return json.loads((out / "consistency" / "consistency.json").read_text())


def trained_seeds(figures: dict) -> list[int]:
    return [trial["settings"]["seed"] for trial in figures["trials"]]


def test_summary_counts_the_seeds_that_reach_the_target():
    best = {"test_accuracy": 1.0, "validation_accuracy": 1.0}  # not the last epoch, so it does not count
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
    command = "python -m train frontier --set epochs=4 --data 'my data'"
    assert command_line("frontier", ["epochs=4"], Path("my data")) == command


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
    assert "2 of 3 trainings were already finished" in output
    assert "seed 1, epoch" not in output
    assert "seed 2, epoch" not in output
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert consistency_json(tmp_path)["seeds"] == 3

    assert main(options(tiny, tmp_path, seeds=3, epochs=EPOCHS + 1)) == 1
    assert f"holds a training with epochs {EPOCHS}, but this training has epochs {EPOCHS + 1}" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense"])
def test_error_for_an_unused_address_is_one_line(address, tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert main(options(tiny, tmp_path, seeds=1)) == 1
    error = capfd.readouterr().err
    assert error.endswith(f"error: RAY_ADDRESS: expected a Ray cluster at {address}, found none\n")


@pytest.mark.slow
def test_terminated_run_keeps_the_finished_seeds(tiny, tmp_path):
    process = subprocess.Popen(
        # The signal is sent after the first of 200 seeds. Even on a fast machine, the run has not ended then.
        [sys.executable, "-m", "train", *options(tiny, tmp_path, seeds=200)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        next(line for line in process.stdout if f"epoch {EPOCHS}/{EPOCHS}" in line)
        process.terminate()
        _, error = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert error.endswith("interrupted: finished epochs are saved; run the same command again to resume\n")
    assert finished(tmp_path)


def diverge_in_epoch_4(experiment, data, *, seed, **options):
    if seed == 2:
        raise DivergenceError("Model_3, seed 2: the loss became nan in epoch 4, batch 0")
    return fit(experiment, data, seed=seed, **options)


def test_other_seeds_finish_if_one_diverges(tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("train.trainings.max_workers", lambda *_: 1)
    with monkeypatch.context() as patch:
        patch.setattr("train.trainings.fit", diverge_in_epoch_4)
        assert main(options(tiny, tmp_path, seeds=3)) == 1
    message = "2 of 3 trainings finished; diverged: Model_3, seed 2: the loss became nan in epoch 4, batch 0"
    assert capfd.readouterr().err == f"error: {message}\n"
    folder = tmp_path / "consistency"
    table = (folder / "consistency.md").read_text()
    assert "n = 2 seeds" in table
    assert f"{message}." in table
    assert trained_seeds(consistency_json(tmp_path)) == [1, 3]
    before = {path: path.read_bytes() for path in finished(tmp_path)}
    assert len(before) == 2

    assert main(options(tiny, tmp_path, seeds=3)) == 0
    assert "2 of 3 trainings were already finished" in capfd.readouterr().out
    assert "n = 3 seeds" in (folder / "consistency.md").read_text()
    assert {path: path.read_bytes() for path in before} == before


def test_error_if_no_seed_finishes_is_one_line(tiny, tmp_path, capfd, monkeypatch):
    def fit(*_, seed, **__):
        raise DivergenceError(f"seed {seed}: the loss became nan")

    monkeypatch.setattr("train.trainings.max_workers", lambda *_: 1)
    monkeypatch.setattr("train.trainings.fit", fit)
    assert main(options(tiny, tmp_path, seeds=2)) == 1
    message = "0 of 2 trainings finished; diverged: seed 1: the loss became nan; seed 2: the loss became nan"
    assert capfd.readouterr().err == f"error: {message}\n"


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
    """Return the process id of a running task on `node`, a child of the node's daemon raylet; None without a task."""
    raylet = node.all_processes["raylet"][0].process.pid
    found = (p for p in children(raylet) if Path(f"/proc/{p}/cmdline").read_bytes().startswith(b"ray::_train_remotely"))
    return next(found, None)


def stop_task_on(node) -> int | None:
    """Stop the process of a running task on `node`. Return its process id, or None if no task is running."""
    if (pid := task_on(node)) is None:
        return None
    os.kill(pid, signal.SIGSTOP)
    if pid == task_on(node):
        return pid
    os.kill(pid, signal.SIGCONT)  # the task finished before the signal
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
        # A stopped task cannot finish before its node is killed, not even on a fast machine.
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
    # The nodes have no checkout; the driver sends its own source revision to the nodes.
    assert {trial["provenance"]["source_revision"] for trial in figures["trials"]} == {source_revision()}
    assert "n = 6 seeds" in output


def test_widths_keep_to_the_budgets():
    parameters = [parameter_count(Model_3(channels)) for channels in studies.WIDTHS]
    assert parameters == sorted(parameters)
    assert parameters[0] < 650
    assert parameters[-1] == parameter_count(Model_3()) <= 8_000
    assert any(2_000 < count <= 2_500 for count in parameters)
    assert any(3_500 < count <= 4_000 for count in parameters)


@pytest.mark.slow
def test_trains_every_width_and_goes_on_from_what_consistency_trained(tiny, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(studies, "WIDTHS", {(3, 6): 2, (16, 32): 1})
    options = ["--epochs", "4", "--device", "cpu", "--data", str(tiny), "--out", str(tmp_path)]
    assert main(["consistency", "--seeds", "1", *options]) == 0
    assert main(["frontier", *options]) == 0
    output = capfd.readouterr().out
    assert "1 of 5 trainings were already finished" in output
    assert "Model_3-3-6, seed 2, epoch 4/4; " in output
    folder = tmp_path / "frontier"
    figures = {one["model"]: one for one in json.loads((folder / "frontier.json").read_text())["networks"]}
    assert {name: (one["parameters"], one["seeds"]) for name, one in figures.items()} == {
        "Model_1": (10_970, 1),
        "Model_2": (6_664, 1),
        "Model_3-3-6": (610, 2),
        "Model_3": (7_162, 1),
    }
    table = (folder / "frontier.md").read_text()
    for one in figures.values():
        assert f"| {one['model']} | {one['parameters']:,} | {one['seeds']} |" in table
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_divergence_is_in_the_table_and_in_the_exit_status(tiny, tmp_path, capfd, monkeypatch):
    def diverge(experiment, data, *, seed, **options):
        if experiment.name == "Model_1" or (experiment.name == "Model_3-3-6" and seed == 2):
            raise DivergenceError(f"{experiment.name}, seed {seed}: the loss became nan")
        return fit(experiment, data, seed=seed, **options)

    monkeypatch.setattr(studies, "WIDTHS", {(3, 6): 2})
    monkeypatch.setattr("train.trainings.max_workers", lambda *_: 1)
    monkeypatch.setattr("train.trainings.fit", diverge)
    options = ["--epochs", "4", "--device", "cpu", "--data", str(tiny), "--out", str(tmp_path)]
    assert main(["frontier", *options]) == 1
    nan = "the loss became nan"
    message = f"2 of 4 trainings finished; diverged: Model_1, seed 1: {nan}; Model_3-3-6, seed 2: {nan}"
    assert capfd.readouterr().err == f"error: {message}\n"
    table = (tmp_path / "frontier" / "frontier.md").read_text()
    assert f"{message}." in table
    assert "| Model_3-3-6 | 610 | 1 |" in table
    assert "| Model_1 |" not in table
