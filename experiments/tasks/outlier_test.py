"""Is one value of a model's classes too small for chance? One verdict per model, at a stated false-alarm rate.

Grubbs' test (Technometrics 11(1), 1969) for the smallest value: how far it lies below the mean of the others, in
their standard deviations. Neural Cleanse (Wang et al., IEEE S&P 2019) divides the distance from the median by the
median absolute deviation and alarms above 2, whatever the number of classes. Of 10 or 24 values that deviation is a
poor estimate, so that a test with a kept rate must ask for 3.9 or 3.5 of it. The standard deviation of the others
is a better one, and Student's t gives the rate. Two targets in one model would hide each other a little.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEWEST = 5  # values; with fewer, the spread says nothing


@dataclass(frozen=True)
class Verdict:
    """z: (n,) how far each value lies below the mean of the others, in standard deviations of such a difference;
    `smallest` is the position of the largest.  p: probability of such a z, or at most that, among n normal values.
    threshold: of z.
    """

    z: np.ndarray
    smallest: int
    p: float
    threshold: float
    rate: float

    @property
    def alarm(self) -> bool:
        return self.p <= self.rate


def outlier_test(values: np.ndarray, rate: float) -> Verdict:
    """Whether the smallest of (n,) values is an outlier; `rate` is the false-alarm rate.

    ValueError for fewer than `FEWEST` values, or values that are not finite.
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if n < FEWEST:
        raise ValueError(f"an outlier among classes needs at least {FEWEST} of them, got {n}")
    if not np.isfinite(values).all():
        raise ValueError("the values of the classes must be finite")
    z = deviations(values)
    smallest = int(np.argmax(z))
    p = min(1.0, n * float(t.sf(z[smallest], n - 2)))
    return Verdict(z, smallest, p, float(t.isf(rate / n, n - 2)), rate)


def deviations(values: np.ndarray) -> np.ndarray:
    """(..., n) -> how far each value lies below the mean of the others, over the standard deviation of that
    difference: of normal values, a draw of Student's t with n - 2 degrees of freedom."""
    n = values.shape[-1]
    below = values.mean(axis=-1, keepdims=True) - values
    squares = np.square(below).sum(axis=-1, keepdims=True) - n / (n - 1) * np.square(below)  # of the others
    spread = np.sqrt(np.maximum(squares, 0) / (n - 2) * n / (n - 1))
    return n / (n - 1) * below / np.maximum(spread, 1e-9)
