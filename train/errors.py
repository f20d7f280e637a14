"""The errors that a user can mend: the command line prints each as one line and exits with 1."""


class TrainError(Exception):
    """What went wrong, as one line that names the thing, the expected and the found."""

    def __str__(self) -> str:
        return " ".join(line.strip() for line in super().__str__().splitlines())


class DataError(TrainError):
    """A data set is missing, truncated, altered or not of MNIST's form."""


class SettingsError(TrainError):
    """What was asked for cannot be done here, or contradicts what is already on disk."""


class DivergenceError(TrainError):
    """The training loss became NaN or infinite, in `epoch`."""

    def __init__(self, message: str, epoch: int = 0) -> None:
        super().__init__(message)
        self.epoch = epoch


class VerificationError(TrainError):
    """An export is not what its manifest says, or does not predict as its network does."""
