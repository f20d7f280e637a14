"""Statistics over the rounds of a measurement."""

from statistics import mean, stdev


def summary(values: list[float]) -> dict[str, float]:
    """Return the mean and the standard deviation of `values`; the deviation of a single value is 0."""
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else 0.0}
