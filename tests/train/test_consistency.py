"""One model over many seeds: every seed arrives, is run once, and is counted honestly."""

import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.polling import wait
from train.__main__ import main
from train.consistency import summarise
from train.errors import DivergenceError
from train.loop import fit
from train.progression import PROGRESSION
from train.provenance import source_revision

ROOT = Path(__file__).parents[2]
# One worker, so that one cluster is enough.
pytestmark = pytest.mark.xdist_group("ray")
EPOCHS = 4  # the fewest that `tiny` can be trained for


def options(data: Path, out: Path, *, seeds: int, epochs: int = EPOCHS) -> list[str]:
    settings = ["--model", "Model_3", "--seeds", seeds, "--epochs", epochs, "--device", "cpu"]
    return ["consistency", *map(str, settings), "--data", str(data), "--out", str(out)]


def done(out: Path) -> list[Path]:
    """Return the checkpoints that hold all epochs."""
    paths = (out / "consistency" / "trials").glob("*/checkpoint.json")
    return [path for path in paths if len(json.loads(path.read_text())["history"]) == EPOCHS]


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
        _, error = process.communicate()
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert error.endswith("interrupted: finished epochs are saved; run the same command again to resume\n")
    assert done(tmp_path)


def diverge_in_epoch_4(experiment, data, *, seed, **options):
    if seed == 2:
        raise DivergenceError("Model_3, seed 2: the loss became nan in epoch 4, batch 0", epoch=4)
    return fit(experiment, data, seed=seed, **options)


@pytest.mark.slow
def test_a_seed_that_diverges_costs_no_other(tiny, tmp_path, capfd, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("train.training.max_workers", lambda *_: 1)
        patch.setattr("train.training.fit", diverge_in_epoch_4)
        assert main(options(tiny, tmp_path, seeds=3)) == 1
    assert capfd.readouterr().err == "error: 2 of 3 seeds finished; seed 2 diverged in epoch 4\n"
    folder = tmp_path / "consistency"
    table = (folder / "consistency.md").read_text()
    assert "n = 2 seeds" in table
    assert "2 of 3 seeds finished; seed 2 diverged in epoch 4." in table
    assert "| 2 | diverged in epoch 4 | | | |" in table
    figures = json.loads((folder / "consistency.json").read_text())
    assert [trial["settings"]["seed"] for trial in figures["trials"]] == [1, 3]
    before = {path: path.read_bytes() for path in done(tmp_path)}
    assert len(before) == 2

    assert main(options(tiny, tmp_path, seeds=3)) == 0
    assert "2 of 3 seeds were finished before" in capfd.readouterr().out
    assert "n = 3 seeds" in (folder / "consistency.md").read_text()
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_a_seed_that_was_interrupted_goes_on_and_ends_with_the_same_bits(tiny, tmp_path, monkeypatch):
    def fit_two_epochs(*arguments, **options):
        def interrupt(epoch):
            if epoch.epoch == 2:
                raise OSError("interrupted")

        return fit(*arguments, **options | {"on_epoch": interrupt})

    monkeypatch.setattr("train.training.max_workers", lambda *_: 1)
    with monkeypatch.context() as patch:
        patch.setattr("train.training.fit", fit_two_epochs)
        assert main(options(tiny, tmp_path / "interrupted", seeds=1)) == 1
    assert not done(tmp_path / "interrupted")
    weights = []
    for out in (tmp_path / "interrupted", tmp_path / "straight"):
        assert main(options(tiny, out, seeds=1)) == 0
        (checkpoint,) = done(out)
        weights.append(checkpoint.with_name(f"epoch-{EPOCHS:02d}.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_no_seed_that_finishes_is_one_clear_line(tiny, tmp_path, capfd, monkeypatch):
    def fit(*_, seed, **__):
        raise DivergenceError("the loss became nan", epoch=seed)

    monkeypatch.setattr("train.training.max_workers", lambda *_: 1)
    monkeypatch.setattr("train.training.fit", fit)
    assert main(options(tiny, tmp_path, seeds=2)) == 1
    assert capfd.readouterr().err == (
        "error: 0 of 2 seeds finished; seed 1 diverged in epoch 1; seed 2 diverged in epoch 2\n"
    )


def test_each_seed_says_which_code_and_libraries_made_it(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_REVISION", "0123456789")
    source_revision.cache_clear()
    try:
        assert main(options(tiny, tmp_path, seeds=1)) == 0
    finally:
        source_revision.cache_clear()
    (trial,) = json.loads((tmp_path / "consistency" / "consistency.json").read_text())["trials"]
    assert trial["provenance"]["source_revision"] == "0123456789"
    assert trial["provenance"]["versions"]["torch"] == version("torch")
    assert "Source revision: 0123456789." in (tmp_path / "consistency" / "consistency.md").read_text()


class Refusal(socketserver.BaseRequestHandler):
    """Answers as a web server does that is asked in a language it does not know."""

    def handle(self):
        self.request.recv(100)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def test_a_port_that_is_not_rays_is_one_clear_line(tiny, tmp_path, capfd, monkeypatch):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert main(options(tiny, tmp_path, seeds=1)) == 1
        server.shutdown()
    assert capfd.readouterr().err == f"error: RAY_ADDRESS: expected a Ray cluster at {address}, found none\n"


@pytest.mark.slow
def test_a_port_that_never_answers_is_one_clear_line(tiny, tmp_path, capfd, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:  # connected to, and silent
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert main(options(tiny, tmp_path, seeds=1)) == 1
    assert capfd.readouterr().err == f"error: RAY_ADDRESS: expected a Ray cluster at {address}, found none\n"


@pytest.fixture(scope="module")
def cluster():
    """Return a Ray cluster of two nodes with a CPU each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes(timeout=120)
        yield cluster
    finally:
        cluster.shutdown()


def task_on(node) -> int | None:
    """Return a process that does a task on `node`, a child of its raylet; None where none does."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    return next(
        (int(p) for p in children if Path(f"/proc/{p}/cmdline").read_bytes().startswith(b"ray::_perform")), None
    )


def stop_task_on(node) -> int | None:
    """Stop a process in the midst of a task on `node` and return it; None where none runs."""
    if (pid := task_on(node)) is None:
        return None
    os.kill(pid, signal.SIGSTOP)
    if pid == task_on(node):
        return pid
    os.kill(pid, signal.SIGCONT)  # the task was over
    return None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_seed_arrives_once_though_a_node_of_the_cluster_is_killed(cluster, tiny, tmp_path):
    doomed = next(iter(cluster.worker_nodes))
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

    def said():
        return f"done: {done(tmp_path)}"

    try:
        # A task that is stopped still runs when its node is killed, however fast the machine is.
        stopped = wait(lambda: running(lambda: stop_task_on(doomed)), 300, said)
        wait(lambda: running(lambda: len(done(tmp_path)) >= 2), 300, said)
        cluster.remove_node(doomed, allow_graceful=False)
        output, error = driver.communicate(timeout=300)
    finally:
        driver.kill()
        if stopped:
            with suppress(ProcessLookupError):
                os.kill(stopped, signal.SIGKILL)
    assert driver.returncode == 0, error
    figures = json.loads((tmp_path / "consistency" / "consistency.json").read_text())
    assert [trial["settings"]["seed"] for trial in figures["trials"]] == [1, 2, 3, 4, 5, 6]
    # The cluster's machines have no checkout, and are told.
    assert {trial["provenance"]["source_revision"] for trial in figures["trials"]} == {source_revision()}
    assert "n = 6 seeds" in output
    lines = [line for line in output.splitlines() if line.startswith("seed ")]
    assert [line.partition(":")[0] for line in lines] == [f"seed {seed}" for seed in range(1, 7)]
