"""gunicorn's master process: its settings, its hooks, and a reload that verifies the new model first.

SIGTERM stops the service after the current requests. SIGHUP verifies the model in MODEL_DIR and starts new workers.

The master never imports Flask, NumPy or ONNX Runtime. Each worker imports them after gevent's monkey patching.
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
    """The service as a gunicorn application. Each forked worker inherits the configuration and the release."""

    def __init__(self, config: Config) -> None:
        """Verify the release. Raises ModelError if it is invalid, OSError if no temporary folder is writable."""
        self.config = config
        self.release = verify(config.model_dir)
        # This folder holds the metrics and gunicorn's heartbeat files. On Linux, it is in memory, so that a full disk
        # stops no worker. prometheus_client reads PROMETHEUS_MULTIPROC_DIR when prometheus_client is imported.
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
            "timeout": 30,  # seconds without a heartbeat, after which a worker is killed
            "graceful_timeout": self.config.request_timeout,
            "loglevel": self.config.log_level,
            "logger_class": logs.GunicornLogger,
            "control_socket_disable": True,
            "forwarded_allow_ips": "",  # no client may set SCRIPT_NAME or the URL scheme; by default, local clients may
            "post_fork": post_fork,
            "child_exit": child_exit,
            "on_exit": on_exit,
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Return the Flask application. Each worker calls this method once."""
        from serve.app import create_app

        return create_app(self.config, self.release)


class Master(Arbiter):  # type: ignore[misc]
    """gunicorn's master process with a different reload, which SIGHUP starts.

    gunicorn's own reload does not verify the model. While gunicorn waits for the old workers to exit, it does not react
    to SIGTERM and does not replace workers that die.
    """

    def handle_hup(self) -> None:
        """Verify the release in MODEL_DIR and start new workers. If the release is invalid, keep the old workers."""
        try:
            self.app.release = verify(self.app.config.model_dir)
        except (ModelError, OSError) as error:
            self.log.error("the new model is refused, the current model is kept: %s", error)  # noqa: TRY400
            return
        for _ in range(self.num_workers):
            self.spawn_worker()
        self.manage_workers()  # stops the oldest workers until num_workers remain


def post_fork(_server: Master, _worker: Worker) -> None:
    """Make SIGTERM end a worker that is still starting. The handler inherited from the master would not do so."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def child_exit(server: Master, worker: Worker) -> None:
    """Update the metrics after a worker has exited."""
    from serve.server import metrics

    # The exit is intended if enough workers remain (after a reload) or if the listeners are closed (the service stops).
    metrics.count_exit(worker.pid, died=bool(server.LISTENERS) and len(server.WORKERS) < server.num_workers)


def on_exit(server: Master) -> None:
    """Delete the folder of the metrics when the service stops."""
    shutil.rmtree(server.app.folder, ignore_errors=True)
