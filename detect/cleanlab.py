"""cleanlab's out-of-distribution score (Kuan and Mueller 2022; arXiv 2207.03061)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import INSTALL, Detector
from detect.embeddings import DetectorInputs


@dataclass(frozen=True, kw_only=True)
class Cleanlab(Detector):
    """Minus cleanlab's exp(-mean cosine distance to the k nearest), which is low for untypical samples.

    k: number of neighbours, self excluded.
    """

    packages: ClassVar[tuple[str, ...]] = ("cleanlab",)

    k: int = 10

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        try:
            from cleanlab.outlier import OutOfDistribution
        except ImportError as error:
            raise ImportError(f"detector cleanlab needs the package cleanlab: {INSTALL}") from error
        image = inputs.embeddings.image
        if self.k >= len(image):
            raise ValueError(
                f"k must lie in 1..{len(image) - 1} for {len(image)} samples (self excluded), got {self.k}"
            )
        return -OutOfDistribution({"k": self.k}).fit_score(features=image.copy(), verbose=False)
