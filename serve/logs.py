"""Logs as one JSON object a line, on standard error: the service's and gunicorn's own."""

import logging
import sys
from datetime import UTC, datetime

import msgspec
from gunicorn import glogging
from gunicorn.config import Config as GunicornConfig


class JSONFormatter(logging.Formatter):
    """A record as one line of JSON; its `fields`, where it has them, are members beside the usual ones."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def install(level: str) -> None:
    """Send what the service logs to standard error."""
    logger = logging.getLogger("serve")
    logger.setLevel(level.upper())
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JSONFormatter())
        logger.addHandler(handler)


class GunicornLogger(glogging.Logger):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's logger with the same lines as the service's."""

    def setup(self, cfg: GunicornConfig) -> None:
        """Set gunicorn's handlers up."""
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(JSONFormatter())
