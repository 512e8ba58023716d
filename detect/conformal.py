"""From scores to error rates: conformal p-values, and sets of suspects with a bounded rate of false ones.

A conformal p-value says how unusual a score is among reference scores that are known (or believed) to be clean:
p = (1 + number of reference scores at or above it) / (m + 1) for m of them. A clean sample that was drawn like the
reference has P(p <= a) <= a for every a, whatever the detector and the distribution of its scores. So removing all
with p <= a removes at most a share a of the clean samples, on average over the draws of the reference.

Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World" (2005), ch. 4; Bates, Candes, Lei, Romano, Sesia,
"Testing for outliers with conformal p-values", Annals of Statistics 51(1), 2023; Benjamini, Hochberg, "Controlling
the false discovery rate", JRSS B 57(1), 1995.
"""

from __future__ import annotations

import numpy as np


def conformal(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """P-values (n,) in (0, 1] of `scores` (n,) against the scores of a clean `reference` (m,), never rising with
    the score.

    Raises ValueError for an empty reference and for scores that are not finite.
    """
    scores, reference = _checked("scores", scores), np.sort(_checked("reference scores", reference))
    if not len(reference):
        raise ValueError("conformal p-values need reference scores, got none")
    above = len(reference) - np.searchsorted(reference, scores, side="left")
    return (1 + above) / (len(reference) + 1)


def conformal_among(scores: np.ndarray) -> np.ndarray:
    """P-values (n,) of each of `scores` (n,) against all others: the share of all that score at least as high.

    No sample has to be known as clean. Poisons that score higher than a clean sample make its p-value larger. In
    the worst case, where all poisons score lower, a share a / (1 - poison rate) of the clean samples has p <= a.
    """
    scores = _checked("scores", scores)
    return (len(scores) - np.searchsorted(np.sort(scores), scores, side="left")) / len(scores)


def false_discoveries(p: np.ndarray, rate: float) -> np.ndarray:
    """(n,) bool: the largest set of lowest p-values of which, on average, at most a share `rate` is clean.

    The procedure of Benjamini and Hochberg: the k lowest, for the largest k whose k-th p-value is at most
    rate x k / n. It holds for conformal p-values against one reference (Bates et al. 2023, Theorem 2).
    """
    p = _checked("p-values", p)
    if not 0 < rate < 1:
        raise ValueError(f"the rate of false discoveries must lie in (0, 1), got {rate}")
    ordered = np.sort(p)
    passed = np.flatnonzero(ordered <= rate * np.arange(1, len(p) + 1) / len(p))
    return p <= ordered[passed[-1]] if len(passed) else np.zeros(len(p), bool)


def interval(reference: int, rate: float, level: float = 0.95) -> tuple[float, float]:
    """Interval that holds the share of clean samples with p <= `rate`, with probability `level`, for one reference.

    reference: its number of scores m. The share has a Beta(l, m + 1 - l) distribution, l = floor(rate x (m + 1)),
    for scores without ties (Vovk 2012, "Conditional validity of inductive conformal predictors"); 0 for l = 0.
    """
    from scipy.stats import beta

    number = int(np.floor(rate * (reference + 1) + 1e-9))
    if number == 0:
        return 0.0, 0.0
    low, high = beta.ppf([(1 - level) / 2, (1 + level) / 2], number, reference + 1 - number)
    return float(low), float(high)


def _checked(what: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 1:
        raise ValueError(f"{what} must be (n,), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{what} must be finite, but {int((~np.isfinite(values)).sum())} are not")
    return values
