"""How well scores separate poisoned from clean samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHARES = (0.01, 0.05, 0.10)


@dataclass(frozen=True)
class Scores:
    """ids: (n,) int64.  values: (n,) float64, finite; higher is more suspicious."""

    ids: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        if self.ids.shape != self.values.shape or self.ids.ndim != 1:
            raise ValueError(f"ids and values must both be (n,), got {self.ids.shape} and {self.values.shape}")
        if not np.isfinite(self.values).all():
            raise ValueError(f"scores must be finite, but {int((~np.isfinite(self.values)).sum())} are not")


@dataclass(frozen=True)
class Metrics:
    """auroc, auprc (average precision), fpr95 and fpr100 (false-positive rate where 95 % and where all of the
    poison is found), and recall_at: share of the poison among the given share of highest scores."""

    auroc: float
    auprc: float
    fpr95: float
    fpr100: float
    recall_at: dict[float, float]


def evaluate(scores: Scores, is_poison: np.ndarray, shares: Sequence[float] = SHARES) -> Metrics:
    """Metrics of `scores` against the truth, (n,) bool.

    Raises ValueError unless there are both poisoned and clean samples.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    truth = np.asarray(is_poison, dtype=bool)
    if truth.shape != scores.values.shape:
        raise ValueError(f"is_poison must be {scores.values.shape}, one per score, got {truth.shape}")
    if truth.all() or not truth.any():
        raise ValueError(
            f"metrics need poisoned and clean samples, got {int(truth.sum())} poisoned of {len(truth)}"
        )
    false_rate, true_rate, _ = roc_curve(truth, scores.values)
    return Metrics(
        auroc=float(roc_auc_score(truth, scores.values)),
        auprc=float(average_precision_score(truth, scores.values)),
        fpr95=float(false_rate[np.argmax(true_rate >= 0.95)]),
        fpr100=float((scores.values[~truth] >= scores.values[truth].min()).mean()),
        recall_at={share: recall_at(scores.values, truth, share) for share in shares},
    )


def recall_at(values: np.ndarray, truth: np.ndarray, share: float) -> float:
    """Share of the poison among the round(share * n), at least one, highest scores; ties by position."""
    removed = np.argsort(-values, kind="stable")[: max(1, round(share * len(values)))]
    return float(truth[removed].sum() / truth.sum())


def robust_z(values: np.ndarray) -> np.ndarray:
    """(values - median) / (1.4826 times the median absolute deviation), along the first axis.

    1.4826 times the deviation estimates the standard deviation of normal values; it is at least 1e-9, so that
    the result is finite.
    """
    centred = values - np.median(values, axis=0)
    return centred / np.maximum(1.4826 * np.median(np.abs(centred), axis=0), 1e-9)


def rank_share(scores: np.ndarray) -> np.ndarray:
    """Share of the samples that are less suspicious, (n,) in (0, 1); ties share their mean."""
    from scipy.stats import rankdata

    return (rankdata(scores) - 0.5) / len(scores)


def rank(scores: np.ndarray) -> np.ndarray:
    """1 for the most suspicious, (n,) int64; ties in the order of the samples."""
    from scipy.stats import rankdata

    return rankdata(-scores, method="ordinal").astype(np.int64)
