"""Detectors in scikit-learn's protocol of outlier detectors, so that they fit its pipelines and searches."""

from __future__ import annotations

from dataclasses import fields, replace
from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from detect.base import Detector
from detect.embeddings import Embeddings, with_index

INNER = "detector__"


class Outliers(OutlierMixin, BaseEstimator):
    """A detector as an outlier detector of scikit-learn, whose sign it takes: lower is more suspicious.

    detector: any detector that needs image embeddings only. Its own parameters are `detector__k` and so on.
    contamination: share of the fitted samples, in (0, 0.5], that `predict` and `fit_predict` call outliers (-1).

    A row that is equal to a fitted one has the score that it got in the fit, among all others. Another row is
    compared with the fitted rows: local detectors search its neighbours there. For a DataFrame, all results are
    Series with its index.

    scores_: (n,) the detector's own scores of the fitted rows; higher is more suspicious.
    offset_: `decision_function` is `score_samples` minus this.

    >>> import numpy as np
    >>> from detect import DAO, Outliers
    >>> x = np.random.default_rng(0).standard_normal((300, 8))  # (n, d)
    >>> x[7] *= 9
    >>> outliers = Outliers(DAO(k=16), contamination=0.01).fit(x)
    >>> int(outliers.score_samples(x).argmin())
    7
    >>> int((outliers.predict(x) == -1).sum())
    3
    >>> outliers.set_params(detector__k=32).detector.k
    32
    """

    scores_: np.ndarray
    offset_: float
    fitted_: Embeddings
    rows_: dict[bytes, int]

    def __init__(self, detector: Detector, contamination: float = 0.01) -> None:
        self.detector = detector
        self.contamination = contamination

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name; deep: also the detector's own, as `detector__<name>`."""
        params = super().get_params(deep=False)
        if deep:
            params |= {INNER + name: getattr(self.detector, name) for name in self._inner()}
        return params

    def _inner(self) -> list[str]:
        """Names of the detector's own parameters; none where something else was given, which `fit` refuses."""
        return [field.name for field in fields(self.detector)] if isinstance(self.detector, Detector) else []

    def set_params(self, **params: Any) -> Outliers:
        """Set parameters by the names of `get_params`; ValueError for another name, or a value that is refused."""
        inner = {name: value for name, value in params.items() if name.startswith(INNER)}
        super().set_params(**{name: value for name, value in params.items() if name not in inner})
        own = {name.removeprefix(INNER): value for name, value in inner.items()}
        if unknown := own.keys() - set(self._inner()):
            known = ", ".join(self._inner())
            raise ValueError(f"{type(self.detector).__name__} has no parameter {min(unknown)!r}; it has {known}")
        if own:
            self.detector = replace(self.detector, **own)
        return self

    def fit(self, X: Any, y: Any = None) -> Outliers:
        """Score the rows of X (n, d) among each other. `y` is ignored."""
        if not isinstance(self.detector, Detector):
            raise TypeError(f"detector must be one of detect's, such as DAO(k=16), got {self.detector!r}")
        if self.detector.needs:
            needed = ", ".join(sorted(self.detector.needs))
            raise ValueError(
                f"{type(self.detector).__name__} needs {needed} beside embeddings, so it cannot be fitted to X"
            )
        if not (isinstance(self.contamination, Real) and 0 < self.contamination <= 0.5):
            raise ValueError(f"contamination must lie in (0, 0.5], got {self.contamination!r}")
        fitted = _embeddings(validate_data(self, X, ensure_min_samples=2))
        self.scores_ = np.asarray(self.detector.score(fitted))
        self.offset_ = float(np.percentile(-self.scores_, 100 * self.contamination))
        self.fitted_ = fitted
        self.rows_ = {row.tobytes(): i for i, row in reversed(list(enumerate(fitted.image)))}
        return self

    def score_samples(self, X: Any) -> Any:
        """Minus the scores of rows (m, d): lower is more suspicious.

        Raises ValueError if some rows are new and the detector cannot score new ones.
        """
        check_is_fitted(self)
        given = _embeddings(validate_data(self, X, reset=False))
        known = np.array([self.rows_.get(row.tobytes(), -1) for row in given.image])
        scores = self.scores_[known]
        if (new := known < 0).any():
            scores[new] = self.detector.score_among(given.image[new], self.fitted_)
        return with_index(X, -scores, type(self.detector).__name__)

    def decision_function(self, X: Any) -> Any:
        """`score_samples` minus `offset_`, (m,): below 0 for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Any:
        """-1 for outliers, 1 for others, (m,) int."""
        return with_index(X, np.where(np.asarray(self.decision_function(X)) < 0, -1, 1), "outlier")

    def fit_predict(self, X: Any, y: Any = None) -> Any:
        """`fit`, then -1 for outliers, 1 for others, (n,) int."""
        found = np.where(-self.fit(X).scores_ < self.offset_, -1, 1)
        return with_index(X, found, "outlier")


def _embeddings(X: np.ndarray) -> Embeddings:
    return Embeddings.of(X + 0.0)  # no negative zeros, so that equal rows have equal bytes
