"""Training, from the data set to a verified export. This package may import `model`, but never `serve`.

The command line prints a TrainError or an OSError as one line and exits with 1.
"""

import os

# Disable the telemetry of ONNX Runtime and of Ray. This must happen before these libraries are imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


class TrainError(Exception):
    """An error for the user, for example a damaged file. `str()` returns its message as one line."""

    def __str__(self) -> str:
        return " ".join(line.strip() for line in super().__str__().splitlines())


class DivergenceError(TrainError):
    """The training loss became NaN or infinite."""
