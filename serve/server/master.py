"""gunicorn's master process: its settings, its hooks, and a reload that verifies the new model first.

SIGTERM stops the service after the current requests. SIGHUP loads the model in MODEL_DIR and starts new workers.

Only the workers import Flask, NumPy and ONNX Runtime, never the master: gevent must patch the worker before that.
"""

import os
import shutil
import signal
import tempfile
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from serve.config import Config
from serve.release import ModelError, verify
from serve.server import logs
from serve.server.worker import Worker


class Service(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
    """The service as gunicorn runs it. The workers inherit its configuration and its release when they are forked."""

    def __init__(self, config: Config) -> None:
        """Verify the release in MODEL_DIR. Raises ModelError, or OSError if no temporary folder is writable."""
        self.config = config
        self.release = verify(config.model_dir)
        # A folder for the metrics and gunicorn's heartbeats: on Linux in memory, so that a full disk does not matter.
        # prometheus_client reads PROMETHEUS_MULTIPROC_DIR when it is imported.
        self.folder = os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(
            prefix="serve-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        )
        super().__init__()

    def load_config(self) -> None:
        """Set gunicorn's settings."""
        settings = {
            "bind": self.config.address,
            "workers": self.config.workers,
            "worker_class": Worker,  # gevent: a slow client occupies a greenlet, not a process or thread
            "worker_connections": 1_000,
            "worker_tmp_dir": self.folder,
            "keepalive": self.config.keep_alive,
            "timeout": 30,  # seconds without a heartbeat before a worker is killed
            "graceful_timeout": self.config.request_timeout,
            "loglevel": self.config.log_level,
            "logger_class": logs.GunicornLogger,
            "control_socket_disable": True,
            "forwarded_allow_ips": "",  # no client may set SCRIPT_NAME or the scheme; by default 127.0.0.1 and ::1 may
            "post_fork": post_fork,
            "child_exit": child_exit,
            "on_exit": on_exit,
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Return the application of a worker."""
        from serve.app import create_app

        return create_app(self.config, self.release)


class Master(Arbiter):  # type: ignore[misc]
    """gunicorn's master with its own implementation of a reload.

    gunicorn's reload verifies nothing. While it waits for the old workers, it handles neither SIGTERM nor dead workers.
    """

    def handle_hup(self) -> None:
        """Verify the release in MODEL_DIR and start new workers. If the release is refused, keep the current one."""
        try:
            self.app.release = verify(self.app.config.model_dir)
        except (ModelError, OSError) as error:
            self.log.error("the new model is refused, the current one is kept: %s", error)  # noqa: TRY400
            return
        for _ in range(self.num_workers):
            self.spawn_worker()
        self.manage_workers()  # there are too many workers now: this stops the oldest


def post_fork(_server: Master, _worker: Worker) -> None:
    """Let SIGTERM end a worker that is still starting. The handler inherited from the master would lose the signal."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def child_exit(server: Master, worker: Worker) -> None:
    """Correct the metrics after a worker has exited."""
    from serve.server import metrics

    # An exit is no death if enough workers remain (after a reload) or if the listeners are closed (the service stops).
    metrics.count_exit(worker.pid, died=bool(server.LISTENERS) and len(server.WORKERS) < server.num_workers)


def on_exit(server: Master) -> None:
    """Delete the folder of the metrics when the service has ended."""
    shutil.rmtree(server.app.folder, ignore_errors=True)
