"""JSON logging: one object per line on standard error, for the service and for gunicorn."""

import json
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
# Bytes of a message and of a traceback as JSON: a pipe writes 4,096 bytes atomically.
MAX_MESSAGE, MAX_TRACEBACK = 1_000, 2_500
logger = logging.getLogger("serve")
_encoder = msgspec.json.Encoder()
on_drop: Callable[[], object] | None = None  # called for each line that could not be written


class JSONFormatter(logging.Formatter):
    """Formats a log record as one line of JSON, with the members of `record.fields` if there are any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["traceback"] = _cut(self.formatException(record.exc_info), MAX_TRACEBACK, end=True)
        message = _cut(record.getMessage(), MAX_MESSAGE)
        line = _line(record.created, record.levelname, record.name, message, fields)
        # Not msgspec: it raises for surrogates, which a path has that is not UTF-8.
        return json.dumps(line, separators=(",", ":"))


class StandardError(logging.Handler):
    """Writes log records to standard error as JSON lines; drops a line rather than block."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JSONFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record."""
        _write(self.format(record).encode())


def prepare_standard_error() -> None:
    """Make standard error non-blocking, so that the service does not hang if nobody reads its log.

    This applies to pipes and sockets, and to every process that shares them. If standard error is closed, descriptor 2
    is opened read-only, so that no socket or metrics file gets this number and receives log lines.
    """
    try:
        mode = os.fstat(STDERR).st_mode
    except OSError:
        descriptor = os.open(os.devnull, os.O_RDONLY)
        if descriptor != STDERR:
            os.dup2(descriptor, STDERR)
            os.close(descriptor)
        return
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        os.set_blocking(STDERR, False)


def install(level: str) -> None:
    """Configure the logger `serve` to write to standard error."""
    logger.setLevel(level.upper())
    if not logger.handlers:
        logger.addHandler(StandardError())


def write(level: int, message: str, **fields: object) -> None:
    """Write a line as the logger `serve` does, without a LogRecord: that saves 6 % of a JSON request's CPU time."""
    if logger.isEnabledFor(level):
        _write(_encoder.encode(_line(time.time(), logging.getLevelName(level), logger.name, message, fields)))


def _write(line: bytes) -> None:
    """Write a line, or count it as dropped: the disk is full, the reader is gone, or the pipe is full."""
    try:
        os.write(STDERR, line + b"\n")
    except OSError:
        if on_drop:
            on_drop()


def _cut(text: str, size: int, *, end: bool = False) -> str:
    """Return the start of `text`, or its end, that takes at most `size` bytes as JSON."""
    while len(json.dumps(text)) > size:
        part = len(text) // 8 + 1
        text = text[part:] if end else text[:-part]
    return text


def _line(seconds: float, level: str, name: str, message: str, fields: dict[str, object]) -> dict[str, object]:
    moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return {"time": moment, "level": level.lower(), "logger": name, "message": message, **fields}


class GunicornLogger(glogging.Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's logger with the service's line format."""

    def setup(self, cfg: GunicornConfig) -> None:
        """Set up gunicorn's handlers."""
        super().setup(cfg)
        self.error_log.handlers = [StandardError()]
