"""Means over runs, and the confidence interval of a difference of paired runs."""

import math
import statistics
from collections.abc import Sequence

__all__ = ['mean_and_std', 'paired_interval']


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean, and the standard deviation (n - 1) or None for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired_interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Return the interval of the mean of paired differences by Student's t, None for fewer than two.

    Example:
        >>> low, high = paired_interval([1.0, 2.0, 3.0])
        >>> round(low, 3), round(high, 3)
        (-0.484, 4.484)
    """
    from scipy.stats import t

    mean, std = mean_and_std(differences)
    if std is None:
        return None
    half = float(t.ppf((1 + confidence) / 2, len(differences) - 1)) * std / math.sqrt(len(differences))
    return mean - half, mean + half
