"""What several rounds of one measurement come to."""

from statistics import mean, stdev


def summary(values: list[float]) -> dict[str, float]:
    """Return the mean of `values` and their standard deviation, 0 of a single one."""
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else 0.0}
