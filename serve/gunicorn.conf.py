"""How gunicorn runs the service: `gunicorn -c serve/gunicorn.conf.py`, from the folder that holds serve/.

SIGTERM ends it once what is in flight is answered; SIGHUP serves the model that is in MODEL_DIR by then.
"""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import gevent

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # serve/ need not be installed

from serve import logs, wsgi
from serve.release import ModelError
from serve.turns import give_way

METRICS = "PROMETHEUS_MULTIPROC_DIR"  # where prometheus_client, in each worker, leaves its figures for /metrics

settings = wsgi.config
wsgi_app = "serve.wsgi:application()"
bind = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
workers = settings.workers
worker_class = "gevent"  # a slow client costs a greenlet, not a worker or a thread
worker_connections = 1_000
keepalive = 5  # seconds; a proxy that keeps connections open must close them sooner
timeout = 30  # seconds without a sign of life until a worker is killed
graceful_timeout = settings.request_timeout
loglevel = settings.log_level
logger_class = logs.GunicornLogger
control_socket_disable = True
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's, never used


def on_starting(server: Any) -> None:
    """Start with a model that verifies, or not at all."""
    if METRICS not in os.environ:
        os.environ[METRICS] = server.metrics = tempfile.mkdtemp(prefix="serve-metrics-")
    for file in Path(os.environ[METRICS]).glob("*.db"):  # of a service that was here before
        file.unlink()
    try:
        wsgi.load()
    except ModelError as error:
        sys.exit(f"serve: {error}")


def on_reload(server: Any) -> None:
    """Give the workers that follow the model that is in MODEL_DIR now, if it verifies."""
    wsgi.reload()


def pre_request(worker: Any, req: Any) -> None:
    """Limit the time from a request's head to the end of its answer, its body's arrival included."""
    from werkzeug.exceptions import RequestTimeout  # not above: see serve/__init__.py

    late = RequestTimeout(f"expected the whole request within {settings.request_timeout} seconds")
    req.limit = gevent.Timeout.start_new(settings.request_timeout, late)


def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    """Give the other connections of this worker their turn before this one's next request."""
    req.limit.close()
    give_way()


def child_exit(server: Any, worker: Any) -> None:
    """Drop the gauges of a worker that is gone, as prometheus_client's mark_process_dead would."""
    for file in Path(os.environ[METRICS]).glob(f"gauge_live*_{worker.pid}.db"):
        file.unlink(missing_ok=True)


def on_exit(server: Any) -> None:
    """Leave nothing behind."""
    if hasattr(server, "metrics"):
        shutil.rmtree(server.metrics, ignore_errors=True)
