"""Is the smallest of a model's masks too small for chance? One verdict per model, at a stated false-alarm rate.

Neural Cleanse (Wang et al., IEEE S&P 2019) divides a class's distance from the median by the median absolute
deviation and alarms above 2, whatever the number of classes. Here the largest of these values over all classes is
compared with what it would be if all values were normal draws: `rate` of the models without a backdoor then raise
an alarm, for any number of classes. With few classes the threshold is therefore much higher than 2.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

CONSISTENT = 1.4826  # makes the median absolute deviation of normal values their standard deviation
DRAWS = 20_000
FEWEST = 5  # values; with fewer, the spread says nothing


@dataclass(frozen=True)
class Verdict:
    """z: (n,) how far each value lies below the median, in robust standard deviations; `smallest` is the position
    of the largest.  p: probability of such a z among n values without an outlier.  threshold: of z.
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
    values = np.asarray(values, dtype=np.float64)
    if len(values) < FEWEST:
        raise ValueError(f"an outlier among classes needs at least {FEWEST} of them, got {len(values)}")
    if not np.isfinite(values).all():
        raise ValueError("the sizes of the masks must be finite")
    z = robust_z(values)
    largest = _largest_of_chance(len(values))
    smallest = int(np.argmax(z))
    p = (1 + np.count_nonzero(largest >= z[smallest])) / (1 + len(largest))
    return Verdict(z, smallest, float(p), float(np.quantile(largest, 1 - rate)), rate)


def robust_z(values: np.ndarray) -> np.ndarray:
    """(..., n) -> how far each value lies below the median, in units of the scaled median absolute deviation."""
    below = np.median(values, axis=-1, keepdims=True) - values
    spread = CONSISTENT * np.median(np.abs(below), axis=-1, keepdims=True)
    return below / np.maximum(spread, 1e-9)


@functools.lru_cache(maxsize=8)
def _largest_of_chance(n: int) -> np.ndarray:
    """(draws,) the largest z of n normal values each."""
    rng = np.random.default_rng(n)
    return np.concatenate([robust_z(rng.standard_normal((1_000, n))).max(axis=1) for _ in range(DRAWS // 1_000)])
