"""SafeCLIP's split into safe and risky pairs (Yang, Gao, Mirzasoleiman, ICML 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector
from detect.clip_score import CLIPScore, cosine
from detect.embeddings import DetectorInputs


@dataclass(frozen=True, kw_only=True)
class SafeCLIP(Detector):
    """1 - P(safe), where safe is the component of larger mean in a mixture of two Gaussians on cos(image, text).

    SafeCLIP trains its own model with in-modality losses first; here the mixture is fitted to the
    similarities of the given model.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text"})
    built_on: ClassVar[tuple[type[Detector], ...]] = (CLIPScore,)

    seed: int = 0

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        from sklearn.mixture import GaussianMixture

        values = cosine(inputs.embeddings)
        spread = values.std()
        if len(values) < 2 or spread == 0:
            raise ValueError("a mixture of two Gaussians needs at least two different image-text cosines")
        scaled = ((values - values.mean()) / spread)[:, None]
        mixture = GaussianMixture(2, n_init=3, random_state=self.seed).fit(scaled)
        return 1 - mixture.predict_proba(scaled)[:, mixture.means_[:, 0].argmax()]
