"""Isolation forest (Liu, Ting, Zhou 2008): how few random cuts isolate a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from detect.base import Detector
from detect.embeddings import DetectorInputs, Embeddings, unit


@dataclass(frozen=True, kw_only=True)
class IsolationForest(Detector):
    """scikit-learn's forest; its `score_samples` is low for outliers, so the sign is turned.

    trees: how many are grown.

    The scores vary much with `seed`, which draws the cuts: compare means over several seeds (docs/parity.md).
    """

    norm_sensitive: ClassVar[bool] = True

    trees: int = 100
    normalise: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trees < 1:
            raise ValueError(f"trees must be at least 1, got {self.trees}")

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        return self.score_among(inputs.embeddings, inputs.embeddings)

    def score_among(self, x: Any, fitted: Any) -> np.ndarray:
        from sklearn.ensemble import IsolationForest as Forest

        image, trained_on = (
            unit(part.image) if self.normalise else part.image for part in map(Embeddings.of, (x, fitted))
        )
        return -Forest(n_estimators=self.trees, random_state=self.seed).fit(trained_on).score_samples(image)
