"""Start the service: `python -m serve`. Environment variables configure the service; the command has no options."""

import errno
import os
import socket
import sys
from importlib.util import find_spec

from serve.config import Config, ConfigError
from serve.release import ModelError


def check_address(host: str, port: int) -> None:
    """Exit with an error that names HOST or PORT if one of them is unusable. gunicorn's error would not name them."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), port))
    except (OSError, TypeError, UnicodeError) as error:  # TypeError, UnicodeError: a part of HOST is empty or too long
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES):
            sys.exit(f"serve: PORT: expected a port that is free and allowed, found {port}: {reason}; set another PORT")
        expected = "HOST: expected an address of this machine"
        sys.exit(f"serve: {expected}, found {host!r}: {reason}; unset HOST, or set it to 127.0.0.1 or 0.0.0.0")


if __name__ == "__main__":
    if find_spec("fcntl") is None:
        sys.exit("serve: expected Linux or macOS, found another system; use WSL or Docker (docs/containers.md)")
    if sys.argv[1:]:
        sys.exit(f"serve: expected no arguments, found {sys.argv[1]}: the settings are environment variables")
    try:
        config = Config.from_environment(os.environ)
    except ConfigError as error:
        sys.exit(f"serve: {error}")
    os.environ.pop("WEB_CONCURRENCY", None)  # gunicorn would also read this variable, and fail if it is empty
    from serve.server import logs, master

    logs.prepare_standard_error()
    if "LISTEN_FDS" not in os.environ:  # if LISTEN_FDS is set, systemd has already opened the socket
        check_address(config.host, config.port)
    try:
        service = master.Service(config)
    except (ModelError, OSError) as error:
        sys.exit(f"serve: {error}")
    master.Master(service).run()
