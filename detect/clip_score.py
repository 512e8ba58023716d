"""CLIP score (Hessel et al. 2021): how badly caption and image agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector
from detect.embeddings import DetectorInputs, Embeddings, unit


def cosine(embeddings: Embeddings) -> np.ndarray:
    """cos(image, text) of each pair, (n,)."""
    assert embeddings.text is not None
    return (unit(embeddings.image).astype(np.float64) * unit(embeddings.text)).sum(axis=1)


@dataclass(frozen=True, kw_only=True)
class CLIPScore(Detector):
    """Minus the cosine of image and text: a low agreement is suspicious."""

    needs: ClassVar[frozenset[str]] = frozenset({"text"})

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        return -cosine(inputs.embeddings)
