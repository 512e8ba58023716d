"""Drift: how far an image's embedding moves when the image hardly changes. Our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector
from detect.embeddings import DetectorInputs
from detect.metrics import robust_z

SLIGHTEST = 1e-6  # float32 cosines cannot resolve smaller drifts


@dataclass(frozen=True, kw_only=True)
class Drift(Detector):
    """The most unusual move of the image's embedding f(x), over mild augmentations v of the image x:

        max over v of z_v(x), the robust z-score over the data of ln(1 - cos(f(x), f(v(x)))).

    Mirroring, a small rotation, smoothing or other colours hardly change what an image shows, so they hardly change
    its embedding. A trigger seldom survives all of them: then the embedding moves from the attacker's target to the
    true content of the image. Each image is compared with its own views only, so neither the caption nor the number
    of poisons matters. One view that the trigger does not survive is enough.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"drift"})

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        n = len(inputs.embeddings)
        drift = np.asarray(inputs.drift, dtype=np.float64)  # (n, v)
        if drift.ndim != 2 or len(drift) != n or not drift.size:
            raise ValueError(f"drift must be ({n}, views), one row per sample, got shape {drift.shape}")
        if not np.isfinite(drift).all():
            bad = np.flatnonzero(~np.isfinite(drift).all(axis=1))
            raise ValueError(f"drift must be finite, but {len(bad)} rows are not, the first of them {bad[0]}")
        return robust_z(np.log(np.maximum(drift, SLIGHTEST))).max(axis=1)
