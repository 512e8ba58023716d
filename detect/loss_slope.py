"""The early slope of a sample's loss: a plain baseline from the training's own log. Our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.abl import ABL, early_losses
from detect.base import Detector
from detect.embeddings import DetectorInputs


@dataclass(frozen=True, kw_only=True)
class LossSlope(Detector):
    """Minus the least-squares slope of a sample's contrastive loss over the first epochs, in loss per epoch.

    A backdoor is learnt early (Li et al., Anti-Backdoor Learning, NeurIPS 2021), so its loss falls fast. Unlike
    ABL's mean, the slope does not favour samples whose loss was low from the start.
    epochs: how many of the first, at least 2; all there are, if training had fewer.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"losses"})
    built_on: ClassVar[tuple[type[Detector], ...]] = (ABL,)

    epochs: int = 4

    def __post_init__(self) -> None:
        if self.epochs < 2:
            raise ValueError(f"epochs must be at least 2, or there is no slope, got {self.epochs}")

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        losses = early_losses(inputs, self.epochs)  # (n, e)
        if losses.shape[1] < 2:
            raise ValueError("a slope needs losses of at least 2 epochs, and there is 1")
        time = np.arange(losses.shape[1]) - (losses.shape[1] - 1) / 2
        return -(losses @ time) / (time @ time)
