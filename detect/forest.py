"""Isolation forest (Liu, Ting, Zhou 2008): how few random cuts set a sample apart from all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector
from detect.embeddings import DetectorInputs, unit


@dataclass(frozen=True, kw_only=True)
class IsolationForest(Detector):
    """scikit-learn's forest; its `score_samples` is low for outliers, so the sign is turned.

    Much depends on `seed`, which draws the cuts: compare means over several seeds (docs/parity.md has a spread).
    """

    norm_sensitive: ClassVar[bool] = True

    trees: int = 100
    normalise: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trees < 1:
            raise ValueError(f"trees must be at least 1, got {self.trees}")

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        from sklearn.ensemble import IsolationForest as Forest

        image = inputs.embeddings.image
        image = unit(image) if self.normalise else image
        return -Forest(n_estimators=self.trees, random_state=self.seed).fit(image).score_samples(image)
