"""Training: from the data set to a verified export. May import model, never serve.

The errors are those that the user can fix: the command line prints each as one line and exits with 1.
"""

import os

# Disable telemetry. Both libraries read these when first imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"


class TrainError(Exception):
    """An error with a one-line message: the thing, the expected and the found."""

    def __str__(self) -> str:
        return " ".join(line.strip() for line in super().__str__().splitlines())


class DataError(TrainError):
    """A data set is missing, truncated, altered or not in MNIST's format."""


class SettingsError(TrainError):
    """An option cannot be met on this machine, or contradicts files on disk."""


class DivergenceError(TrainError):
    """The training loss became NaN or infinite in `epoch`."""

    def __init__(self, message: str, epoch: int = 0) -> None:
        super().__init__(message)
        self.epoch = epoch


class VerificationError(TrainError):
    """An export differs from its manifest, or its graph differs from its network."""
