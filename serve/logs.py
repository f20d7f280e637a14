"""Logs as one JSON object a line, on standard error: the service's and gunicorn's own."""

import logging
import os
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
from gunicorn import glogging
from gunicorn.config import Config as GunicornConfig

STDERR = 2
_encoder = msgspec.json.Encoder()
on_drop: list[Callable[[], object]] = []  # called for each line that could not be written


class JSONFormatter(logging.Formatter):
    """A record as one line of JSON; its `fields`, where it has them, are members beside the usual ones."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return _line(record.created, record.levelname, record.name, record.getMessage(), fields).decode()


class StandardError(logging.Handler):
    """Writes a record to standard error as a line of JSON, or drops it where that cannot take it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JSONFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        _write(self.format(record).encode())


def prepare_standard_error() -> None:
    """Make sure that writing the log never waits for its reader and never writes into another file.

    A pipe or socket is made non-blocking, for every process that shares it. Where standard error is closed, its number
    is taken by a file that refuses every line, before a socket or a file of metrics takes it.
    """
    try:
        mode = os.fstat(STDERR).st_mode
    except OSError:
        closed = os.open(os.devnull, os.O_RDONLY)
        if closed != STDERR:
            os.dup2(closed, STDERR)
            os.close(closed)
        return
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        os.set_blocking(STDERR, False)


def install(level: str) -> None:
    """Send what the service logs to standard error."""
    logger = logging.getLogger("serve")
    logger.setLevel(level.upper())
    if not logger.handlers:
        logger.addHandler(StandardError())


def write(level: int, message: str, **fields: object) -> None:
    """Write a line as the logger `serve` would, in a fifth of its time: for the one that every request has."""
    line = _line(time.time(), logging.getLevelName(level), "serve", message, fields)
    _write(line)


def _write(line: bytes) -> None:
    """Write a line, or count it as dropped: disk full, reader gone, or a pipe that nobody reads."""
    try:
        os.write(STDERR, line + b"\n")
    except OSError:
        for callback in on_drop:
            callback()


def _line(seconds: float, level: str, logger: str, message: str, fields: dict[str, object]) -> bytes:
    moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return _encoder.encode({"time": moment, "level": level.lower(), "logger": logger, "message": message, **fields})


class GunicornLogger(glogging.Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's logger with the same lines as the service's."""

    def setup(self, cfg: GunicornConfig) -> None:
        """Set gunicorn's handlers up."""
        super().setup(cfg)
        self.error_log.handlers = [StandardError()]
