"""Start the service: `python -m serve` validates the configuration and executes gunicorn with the given options."""

import errno
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path

from serve import wsgi


def check_address(host: str, port: int) -> None:
    """Exit with one line if the service cannot listen at this address; gunicorn names neither HOST nor PORT."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), port))
    except (OSError, UnicodeError) as error:  # UnicodeError: a part of the name is empty or too long
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES):
            sys.exit(f"serve: PORT: expected a port that is free and allowed, found {port}: {reason}; set another PORT")
        expected = "HOST: expected an address of this machine"
        sys.exit(f"serve: {expected}, found {host!r}: {reason}; unset HOST, or set it to 127.0.0.1 or 0.0.0.0")


if __name__ == "__main__":
    if find_spec("fcntl") is None:
        sys.exit("serve: expected Linux or macOS, found neither: on Windows use WSL, or Docker (docs/containers.md)")
    if "LISTEN_FDS" not in os.environ:  # systemd has opened the socket
        check_address(wsgi.config.host, wsgi.config.port)
    # gunicorn reads this variable before its configuration file, and fails with a traceback if int() does.
    os.environ["WEB_CONCURRENCY"] = str(wsgi.config.workers)
    settings = Path(wsgi.__file__).with_name("gunicorn.conf.py")
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "-c", str(settings), *sys.argv[1:]])
