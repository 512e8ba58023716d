"""ABL, the isolation half of Anti-Backdoor Learning (Li, Lyu, Koren, Lyu, Li, Ma, NeurIPS 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector
from detect.embeddings import DetectorInputs


def early_losses(inputs: DetectorInputs, epochs: int | None = None) -> np.ndarray:
    """(n, epochs) float64 losses of the first epochs, or of all; ValueError for a wrong shape or NaN."""
    losses = np.asarray(inputs.losses)  # (n, epochs)
    n = len(inputs.embeddings)
    if losses.ndim != 2 or len(losses) != n or not losses.size:
        raise ValueError(f"losses must be ({n}, epochs), one row per sample, got shape {losses.shape}")
    first = losses[:, :epochs].astype(np.float64)
    if not np.isfinite(first).all():
        bad = np.flatnonzero(~np.isfinite(first).all(axis=1))
        raise ValueError(f"losses must be finite, but {len(bad)} rows are not, the first of them {bad[0]}")
    return first


@dataclass(frozen=True, kw_only=True)
class ABL(Detector):
    """Minus the mean of a sample's contrastive loss over the first epochs: backdoors are learnt early.

    epochs: number of first epochs to average; all epochs, if training had fewer.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"losses"})

    epochs: int = 10

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        return -early_losses(inputs, self.epochs).mean(axis=1)
