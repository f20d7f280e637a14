"""Train experiments: one in this process, several in parallel processes or, with RAY_ADDRESS, on a Ray cluster.

Each training prints one line per epoch to standard output and, on a terminal, a progress bar to standard error.
"""

import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

import model
import train
from train import DivergenceError, TrainError, machine
from train.checkpoint import CheckpointFolder, Epoch, settings
from train.data import Data, load
from train.loop import fit
from train.progression import Experiment

# If this process is killed, multiprocessing's resource tracker deletes the semaphores. Suppress its warning.
sys.warnoptions.append("ignore:resource_tracker:UserWarning")


@dataclass(frozen=True)
class Trained:
    """A trained network with its history. Before the first epoch the network is untrained and the history empty."""

    experiment: Experiment
    network: nn.Module
    seed: int
    history: list[Epoch]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Training:
    """An experiment to train with a seed, and its checkpoint folder."""

    experiment: Experiment
    seed: int
    folder: Path
    device_name: str  # auto, cpu or cuda: see machine.pick

    def checkpoints(self, data: Data) -> CheckpointFolder:
        """Return the checkpoint folder of this training on `data`."""
        return CheckpointFolder(self.folder, settings(self.experiment, data, self.seed))

    def restore(self, data: Data) -> Trained:
        """Load the last checkpoint, on the CPU. Raises the errors of CheckpointFolder.load."""
        network = self.experiment.network().eval()
        return Trained(self.experiment, network, self.seed, *self.checkpoints(data).load(network))


Results = Generator[tuple[Training, TrainError | None], None, None]  # each training when it ends, and its error or None


def train_all(trainings: list[Training], data: Data) -> tuple[list[Trained], dict[Training, DivergenceError]]:
    """Train all `trainings` to the last epoch; return the finished trainings, and the errors of the diverged trainings.

    Finished trainings are not repeated; interrupted trainings resume after their last saved epoch. Raises TrainError
    before the first training if a training cannot resume, and later if a training fails, except by divergence.
    """
    pending = [one for one in trainings if len(one.restore(data).history) < one.experiment.recipe.epochs]
    if len(pending) < len(trainings):
        print(f"{len(trainings) - len(pending)} of {len(trainings)} trainings were already finished")
    for experiment in {one.experiment.name: one.experiment for one in pending}.values():
        print(experiment.describe())
    results: Results = ((one, _train(one, data)) for one in pending)
    if pending and (address := os.environ.get("RAY_ADDRESS")):
        results = _on_cluster(address, pending, data)
    # Count finished trainings, too: a resumed run must have as many threads per training to give the same last bits.
    elif pending and (workers := max_workers(len(trainings), trainings[0].device_name)) > 1:
        results = _in_processes(workers, pending, data)
    errors = {}
    with closing(results):
        for training, error in results:
            if isinstance(error, DivergenceError):
                print(error)
                errors[training] = error
            elif error:
                raise error
    return [one.restore(data) for one in trainings if one not in errors], errors


def max_workers(trainings: int, device_name: str) -> int:
    """Return how many of `trainings` to run in parallel: limited by threads and memory on a CPU; one on a GPU.

    Parallel trainings with one thread each are faster than one training with all threads, because the layers are
    small. A GPU runs one process at a time: on an H100, 30 epochs took 46 s in ten processes and 27 s in one.
    """
    if machine.pick(device_name).type == "cuda":
        return 1
    return max(1, min(trainings, torch.get_num_threads(), machine.available_memory() // machine.REQUIRED_MEMORY))


def _train(training: Training, data: Data, position: int = 0) -> TrainError | None:
    """Train to the last epoch, and return the error, if any. `position` is the line of the progress bar."""
    try:
        fit(
            training.experiment,
            data,
            seed=training.seed,
            device=machine.pick(training.device_name),
            checkpoints=training.checkpoints(data),
            on_epoch=lambda epoch: tqdm.write(_line(training, epoch, data)),
            position=position,
        )
    except TrainError as error:
        return error
    except torch.OutOfMemoryError as error:
        return TrainError(f"the GPU has too little memory; use --device cpu: {error}")
    return None


def _line(training: Training, epoch: Epoch, data: Data) -> str:
    line = f"{training.experiment.name}, seed {training.seed}, epoch {epoch.epoch}/{training.experiment.recipe.epochs}"
    for name in ("validation", "test"):
        loss, accuracy = getattr(epoch, f"{name}_loss"), getattr(epoch, f"{name}_accuracy")
        count = len(getattr(data, name))
        line += f"; {name.capitalize()} set: Average loss: {loss:.4f}, "
        line += f"Accuracy: {round(accuracy * count)}/{count} ({accuracy:.2%})"
    return line


def _in_processes(workers: int, pending: list[Training], data: Data) -> Results:
    """Train in `workers` processes, which share torch's threads equally and, on Linux, end when this process ends."""
    context = multiprocessing.get_context("spawn")  # a fork may hang: it copies locks, but not the threads holding them
    threads = max(1, torch.get_num_threads() // workers)
    state = (os.getpid(), threads, data.directory, context.RLock())
    with ProcessPoolExecutor(workers, context, _start_child, state) as pool:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the children inherit this and thus ignore Ctrl-C
        trainings = {pool.submit(_train_in_child, training): training for training in pending}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            for done in as_completed(trainings):
                yield trainings[done], done.result()
        except BrokenProcessPool as error:
            raise TrainError("a training process ended: the kernel may have killed it for lack of memory") from error
        finally:
            for child in multiprocessing.active_children():  # after an error, do not wait for the other trainings
                child.kill()


def _start_child(parent: int, threads: int, directory: Path, lock: Any) -> None:
    """Prepare a child: set `threads` and the progress bars' `lock`, load the data; on Linux, end with `parent`."""
    global _data
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG: SIGKILL when the parent ends
        if os.getppid() != parent:  # the parent ended before prctl was called
            os._exit(1)
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    torch.set_num_threads(threads)
    tqdm.set_lock(lock)
    _data = load(directory)


_data: Data  # set in child processes only


def _train_in_child(training: Training) -> TrainError | None:
    number = int(multiprocessing.current_process().name.rpartition("-")[2])  # names: SpawnProcess-1, SpawnProcess-2, …
    return _train(training, _data, number - 1)


def _on_cluster(address: str, pending: list[Training], data: Data) -> Results:
    """Train on a Ray cluster, each training on one CPU and one GPU (if any). Ray repeats the trainings of dead nodes.

    The nodes need the libraries. This machine sends source and data to the nodes, and saves each finished training.
    """
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    # The nodes have no Git checkout, so they get the source revision from here.
    environment = {"py_modules": [model, train], "env_vars": {"SOURCE_REVISION": machine.source_revision()}}
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "/" not in host:  # if nothing listens, fail now: ray.init would try for over 5 minutes
            socket.create_connection((host, int(port)), 10).close()
        with ThreadPoolExecutor(1) as thread:  # in the main thread, ray.init would replace the handler of SIGTERM
            thread.submit(ray.init, address, runtime_env=environment, logging_level=logging.ERROR).result()
    except (OSError, OverflowError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise TrainError(f"RAY_ADDRESS: expected a Ray cluster at {address}, found none") from error
    # Install our handler again: Ray's C++ code has replaced it by a handler that prints a stack trace.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    try:
        gpus = int(pending[0].device_name != "cpu" and ray.cluster_resources().get("GPU", 0) > 0)
        remote, shared = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_train_remotely), ray.put(data)
        running = {remote.remote(training, shared): training for training in pending}
        while running:
            (done,), _ = ray.wait(list(running))
            training, (failure, files) = running.pop(done), ray.get(done)
            if not failure:
                training.checkpoints(data).write(files)
            yield training, failure
    except ray.exceptions.RayError as error:
        raise TrainError(f"Ray: {error}") from error
    finally:
        ray.shutdown()


def _train_remotely(training: Training, data: Data) -> tuple[TrainError | None, dict[str, bytes]]:
    """Train, as a Ray task on any node of the cluster. Return the error, if any, and the checkpoint's files."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        training = replace(training, folder=Path(folder) / training.folder.name)
        error = _train(training, data)
        files = sorted(training.folder.glob("*"), reverse=True)  # epoch-NN first, checkpoint.json last
        return error, {path.name: path.read_bytes() for path in files}
