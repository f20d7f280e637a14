"""Start the service: `python -m serve` checks the configuration, then becomes gunicorn.

Options are gunicorn's. gunicorn itself reads WEB_CONCURRENCY before any file of ours, and would answer a value that is
no number with a traceback.
"""

import os
import sys
from pathlib import Path

from serve import wsgi

if __name__ == "__main__":
    configuration = Path(wsgi.__file__).with_name("gunicorn.conf.py")
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "-c", str(configuration), *sys.argv[1:]])
