"""Training: from the data set to a verified export. May import model, never serve.

The command line prints a TrainError or an OSError as one line and exits with 1.
"""

import os

# Disable the telemetry of ONNX Runtime and Ray, before either is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


class TrainError(Exception):
    """An error with a one-line message: what it is about, what was expected and what was found."""

    def __str__(self) -> str:
        return " ".join(line.strip() for line in super().__str__().splitlines())


class DivergenceError(TrainError):
    """The training loss became NaN or infinite."""
