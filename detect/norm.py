"""Control: the norm of the image embedding, which separates some triggers without any neighbourhood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from detect.base import Detector
from detect.embeddings import DetectorInputs


@dataclass(frozen=True, kw_only=True)
class Norm(Detector):
    """||f(x)||; a detector shows that neighbourhoods are sparse only if it exceeds this control."""

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        return np.linalg.norm(inputs.embeddings.image.astype(np.float64), axis=1)

    def score_among(self, x: Any, fitted: Any) -> np.ndarray:
        return self.score(x)
