"""gunicorn settings and hooks; `python -m serve` applies them.

SIGTERM stops the service after the requests in flight. SIGHUP loads the model in MODEL_DIR and starts new workers.
"""

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # serve need not be installed

from serve import logs, wsgi
from serve.release import ModelError

METRICS = "PROMETHEUS_MULTIPROC_DIR"  # the folder in which prometheus_client stores the metrics of every worker
METRICS_BYTES = 2**20  # upper limit of a worker's metrics

logs.prepare_standard_error()
settings = wsgi.config
wsgi_app = "serve.wsgi:application()"
bind = settings.address
workers = settings.workers
worker_class = "serve.worker.Worker"  # gevent: a slow client occupies a greenlet, not a process or thread
worker_connections = 1_000
keepalive = 5  # seconds; a proxy must close its idle connections sooner
timeout = 30  # seconds without a heartbeat before a worker is killed
graceful_timeout = settings.request_timeout
loglevel = settings.log_level
logger_class = logs.GunicornLogger
control_socket_disable = True
forwarded_allow_ips = ""  # no TCP client may set SCRIPT_NAME or the scheme; by default 127.0.0.1 and ::1 may
sendfile = False  # it would bypass serve.worker.Connection
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # no thread pool for NumPy


def on_starting(server: Any) -> None:
    """Verify the model and the disk space for the metrics; exit with one line if either fails."""
    try:
        wsgi.load()
        _create_metrics_folder(server)
        _check_disk_space(server.num_workers)
    except (ModelError, OSError) as error:
        sys.exit(f"serve: {error}")
    _reload_model_on_sighup(server)
    _reset_sigterm_on_fork()


def _reset_sigterm_on_fork() -> None:
    """Reset SIGTERM to its default action in a new worker until it installs its own handler.

    Otherwise a new worker would run the master's handler and lose the signal, and the service would wait
    graceful_timeout for that worker before it stops.
    """
    blocked: set[int | signal.Signals] = set()  # before the fork: a decoding process is started with SIGTERM blocked

    def block() -> None:
        nonlocal blocked
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def reset() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        restore()

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    os.register_at_fork(before=block, after_in_parent=restore, after_in_child=reset)


def _create_metrics_folder(server: Any) -> None:
    """Create the folder for metrics and gunicorn's heartbeat files; it is deleted when the master exits."""
    parent = os.environ.get(METRICS) or None
    try:
        folder = tempfile.mkdtemp(prefix="serve-", dir=parent)
    except OSError as error:
        expected = f"{METRICS}: expected a writable folder" if parent else "expected a writable temporary folder"
        raise OSError(f"{expected}, found: {error.strerror or error} {parent or ''}".rstrip()) from error
    os.environ[METRICS] = folder
    server.cfg.set("worker_tmp_dir", folder)
    master = os.getpid()

    def delete_folder() -> None:
        if os.getpid() == master:  # workers inherit the registration
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(delete_folder)


def _check_disk_space(workers: int) -> None:
    """Raise OSError if the disk has no space for the metrics of that many more workers; SIGBUS would kill them."""
    folder = os.environ[METRICS]
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, workers * METRICS_BYTES)
    except OSError as error:
        expected = f"{METRICS}: expected {workers} MiB of free space in {folder} for the metrics of {workers} workers"
        raise OSError(f"{expected}, found: {error.strerror}") from error


def _reload_model_on_sighup(server: Any) -> None:
    """Make SIGHUP verify the model in MODEL_DIR and replace the workers; keep the current model if that fails.

    gunicorn's own reload starts new workers without verifying anything, and delays SIGTERM until the old workers have
    exited. Here gunicorn stops the old workers as it does when there are more than `workers`.
    """
    wait = server.wait_for_signals

    def wait_for_signals(timeout: float) -> list[int]:
        numbers = wait(timeout)
        # One reload is enough for several SIGHUPs. It comes last, so that SIGTERM does not wait for it.
        reload = [signal.SIGHUP] if signal.SIGHUP in numbers else []
        return [number for number in numbers if number != signal.SIGHUP] + reload

    def handle_hup() -> None:
        try:
            _check_disk_space(server.num_workers)
            wsgi.load()
        except Exception as error:  # any other would end the master
            server.log.error("the new model is refused, the current one is kept: %s", error)  # noqa: TRY400
            return
        for _ in range(server.num_workers):  # SIGTTIN and SIGTTOU change it
            server.spawn_worker()
        server.manage_workers()

    server.wait_for_signals, server.handle_hup = wait_for_signals, handle_hup


def pre_fork(server: Any, worker: Any) -> None:
    """Give a new worker the lowest number that no living one has: a dead worker's metrics files are continued.

    prometheus_client numbers them by process id. Then each reload would leave files behind, and slow every scrape.
    """
    taken = {other.number for other in server.WORKERS.values()}
    worker.number = wsgi.number = next(number for number in count() if number not in taken)


def post_worker_init(worker: Any) -> None:
    """Prepare a worker: allocate its metrics files on disk, and exclude what is loaded from garbage collection.

    A disk that fills up later does not kill it, and each full garbage collection has less to visit.
    """
    for file in Path(os.environ[METRICS]).glob(f"*_{worker.number}.db"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    gc.freeze()


def child_exit(server: Any, worker: Any) -> None:
    """Count a dead worker and delete its live gauges, as prometheus_client's mark_process_dead does."""
    if server.LISTENERS and len(server.WORKERS) < server.num_workers:  # neither a shutdown nor a reload
        wsgi.deaths[0] += 1
    for file in Path(os.environ[METRICS]).glob(f"gauge_live*_{worker.number}.db"):
        file.unlink(missing_ok=True)
