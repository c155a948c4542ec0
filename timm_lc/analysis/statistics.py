"""Means over runs, and the confidence interval of a difference of paired runs."""

import math
import statistics
from collections.abc import Sequence

__all__ = ['mean_and_std', 'paired_interval', 'student_quantile']


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
    mean, std = mean_and_std(differences)
    if std is None:
        return None
    half = student_quantile(confidence, len(differences) - 1) * std / math.sqrt(len(differences))
    return mean - half, mean + half


def student_quantile(confidence: float, freedom: int) -> float:
    """Return t with P(|T| < t) = `confidence` for Student's distribution.

    The probability is a finite series of theta = atan(t / sqrt(freedom)) (Abramowitz and Stegun, 26.7.3 and 26.7.4);
    theta is found by bisection.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        theta = (low + high) / 2
        low, high = (theta, high) if _probability(theta, freedom) < confidence else (low, theta)
    return math.sqrt(freedom) * math.tan(theta)


def _probability(theta: float, freedom: int) -> float:
    """Return P(|T| < sqrt(freedom) * tan(theta))."""
    odd = freedom % 2
    term, total = math.cos(theta) if odd else 1.0, 0.0
    for index in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(theta) ** 2 * index / (index + 1)
    return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
