"""How gunicorn runs the service; `python -m serve` starts it.

SIGTERM ends it once what is in flight is answered; SIGHUP serves the model that is in MODEL_DIR by then.
"""

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # serve/ need not be installed

from serve import logs, wsgi
from serve.release import ModelError

METRICS = "PROMETHEUS_MULTIPROC_DIR"  # where prometheus_client, in each worker, leaves its figures for /metrics
METRICS_BYTES = 2**20  # that a worker's figures need at most

logs.prepare_standard_error()
settings = wsgi.config
wsgi_app = "serve.wsgi:application()"
bind = settings.address
workers = settings.workers
worker_class = "serve.worker.Worker"  # gevent: a slow client costs a greenlet, not a worker or a thread
worker_connections = 1_000
keepalive = 5  # seconds; a proxy that keeps connections open must close them sooner
timeout = 30  # seconds without a sign of life until a worker is killed
graceful_timeout = settings.request_timeout
loglevel = settings.log_level
logger_class = logs.GunicornLogger
control_socket_disable = True
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's, never used


def on_starting(server: Any) -> None:
    """Start with a model that verifies and room for the metrics, or not at all."""
    try:
        wsgi.load()
        _create_folder(server)
        _check_room(server.cfg.workers)
    except (ModelError, OSError) as error:
        sys.exit(f"serve: {error}")
    _reload_by_model(server)
    _let_sigterm_end_new_workers()


def _let_sigterm_end_new_workers() -> None:
    """Have SIGTERM end a worker that has just been forked.

    It would run the master's handler until it has its own: the signal would be lost, and the end of the service would
    wait for that worker until graceful_timeout is over.
    """
    sigterm = {signal.SIGTERM}

    def restore_default() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, sigterm)

    os.register_at_fork(
        before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, sigterm),
        after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, sigterm),
        after_in_child=restore_default,
    )


def _create_folder(server: Any) -> None:
    """Create the folder of the metrics and of gunicorn's heartbeats, deleted when the master ends."""
    parent = os.environ.get(METRICS) or None
    try:
        folder = tempfile.mkdtemp(prefix="serve-", dir=parent)
    except OSError as error:
        place = f"{METRICS}: expected a folder that can be written" if parent else "expected a temporary folder"
        raise OSError(f"{place}, found: {error.strerror or error} {parent or ''}".rstrip()) from error
    os.environ[METRICS] = folder
    server.cfg.set("worker_tmp_dir", folder)
    master = os.getpid()

    def delete_folder() -> None:
        if os.getpid() == master:  # workers inherit what is registered
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(delete_folder)


def _check_room(count: int) -> None:
    """Raise OSError where the disk has no room for the metrics of `count` more workers, which would die of SIGBUS."""
    folder = os.environ[METRICS]
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, count * METRICS_BYTES)
    except OSError as error:
        expected = f"{METRICS}: expected {count} MiB of room in {folder} for the metrics of {count} workers"
        raise OSError(f"{expected}, found: {error.strerror}") from error


def _reload_by_model(server: Any) -> None:
    """Have SIGHUP start workers that serve the model in MODEL_DIR, where it verifies and there is room for them.

    gunicorn's own reload would read this file again, which changes nothing, start new workers in any case, and keep
    SIGTERM waiting until the old ones have ended. The old ones end as those beyond the number of workers do.
    """
    put = server.signal
    pending: list[int] = []

    def enqueue(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            if pending:
                return  # one reload serves what all of them ask for
            pending.append(number)
        put(number, frame)

    def handle_hup() -> None:
        pending.clear()
        try:
            _check_room(server.cfg.workers)
            wsgi.load()
        except (ModelError, OSError) as error:
            message = "the new model is refused, the one of before is served: %s"
            server.log.error(message, error)  # noqa: TRY400  # its one line says it all
            return
        for _ in range(server.cfg.workers):
            server.spawn_worker()
        server.manage_workers()

    server.signal, server.handle_hup = enqueue, handle_hup


def post_worker_init(worker: Any) -> None:
    """Allocate the files of the metrics: a disk that is full later then kills no worker."""
    for file in Path(os.environ[METRICS]).glob(f"*_{worker.pid}.db"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


def child_exit(server: Any, worker: Any) -> None:
    """Count a worker that died, and drop its gauges, as prometheus_client's mark_process_dead would."""
    if server.LISTENERS and len(server.WORKERS) < server.num_workers:  # not the service's end, nor a reload's old ones
        wsgi.deaths[0] += 1
    for file in Path(os.environ[METRICS]).glob(f"gauge_live*_{worker.pid}.db"):
        file.unlink(missing_ok=True)
