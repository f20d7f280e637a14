"""Start the service: `python -m serve` validates the configuration and executes gunicorn with the given options."""

import os
import sys
from pathlib import Path

from serve import wsgi

if __name__ == "__main__":
    # gunicorn reads this variable before its configuration file, and fails with a traceback if int() does.
    os.environ["WEB_CONCURRENCY"] = str(wsgi.config.workers)
    settings = Path(wsgi.__file__).with_name("gunicorn.conf.py")
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "-c", str(settings), *sys.argv[1:]])
