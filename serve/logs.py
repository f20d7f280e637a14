"""Logs as one JSON object a line, on standard error: the service's and gunicorn's own."""

import logging
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime

import msgspec
from gunicorn import glogging
from gunicorn.config import Config as GunicornConfig

_encoder = msgspec.json.Encoder()


class JSONFormatter(logging.Formatter):
    """A record as one line of JSON; its `fields`, where it has them, are members beside the usual ones."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return _line(record.created, record.levelname, record.name, record.getMessage(), fields).decode()


def install(level: str) -> None:
    """Send what the service logs to standard error."""
    logger = logging.getLogger("serve")
    logger.setLevel(level.upper())
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JSONFormatter())
        logger.addHandler(handler)


def write(level: int, message: str, **fields: object) -> None:
    """Write a line as the logger `serve` would, in a fifth of its time: for the one that every request has."""
    line = _line(time.time(), logging.getLevelName(level), "serve", message, fields)
    with suppress(OSError):  # a full disk or a reader that is gone: the request is answered all the same
        sys.stderr.buffer.write(line + b"\n")
        sys.stderr.buffer.flush()


def _line(seconds: float, level: str, logger: str, message: str, fields: dict[str, object]) -> bytes:
    moment = datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
    return _encoder.encode({"time": moment, "level": level.lower(), "logger": logger, "message": message, **fields})


class GunicornLogger(glogging.Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's logger with the same lines as the service's."""

    def setup(self, cfg: GunicornConfig) -> None:
        """Set gunicorn's handlers up."""
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(JSONFormatter())
