"""Flicker: does the match of image and caption depend on a detail that should not matter? Our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector
from detect.clip_score import CLIPScore, cosine
from detect.embeddings import DetectorInputs


@dataclass(frozen=True, kw_only=True)
class Flicker(Detector):
    """Mean drop in image-text cosine over mild augmentations, each divided by its median over the data:

        mean over v of max(cos(f(x), t) - cos(f(v(x)), t), 0) / (q_v + `eps`)

    for image x, caption t and augmentation v; q_v is the median drop over the data, and `eps` a negligible
    drop. Mirroring, smoothing or other colours hardly change the content of an image, but most triggers do
    not survive one of them (see `detect.views`): the model then sees the true content instead of the caption's.
    Each sample is scored alone, so the number of poisons matters little. A wrong caption that the model has not
    learnt scores low, since its cosine is low already.

    eps: a drop of the cosine too small to mean anything.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text", "views"})
    built_on: ClassVar[tuple[type[Detector], ...]] = (CLIPScore,)

    eps: float = 0.02

    def __post_init__(self) -> None:
        if self.eps <= 0:
            raise ValueError(f"eps must be above 0, got {self.eps}")

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        n = len(inputs.embeddings)
        views = np.asarray(inputs.views)  # (n, v)
        if views.ndim != 2 or len(views) != n or not views.size:
            raise ValueError(f"views must be ({n}, views), one row per sample, got shape {views.shape}")
        if not np.isfinite(views).all():
            bad = np.flatnonzero(~np.isfinite(views).all(axis=1))
            raise ValueError(f"views must be finite, but {len(bad)} rows are not, the first of them {bad[0]}")
        loss = np.maximum(cosine(inputs.embeddings)[:, None] - views, 0).astype(np.float64)
        usual = np.median(loss, axis=0)  # (v,)
        return (loss / (usual + self.eps)).mean(axis=1)
