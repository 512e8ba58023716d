"""Forgetting events (Toneva, Sordoni, Tachet des Combes, Trischler, Bengio, Gordon, ICLR 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.abl import ABL, early_losses
from detect.base import Detector
from detect.embeddings import DetectorInputs


@dataclass(frozen=True, kw_only=True)
class Forgetting(Detector):
    """Minus how often a sample is forgotten: learnt in one epoch, and no longer in the next.

    In the paper a sample is learnt if it is classified correctly. A contrastive loss has no classes: here a sample
    is learnt in an epoch if its loss is below that epoch's median. A sample that is never learnt counts as
    forgotten in every epoch, so that it ranks last. A trigger is simple, and once learnt it is seldom forgotten, so
    few events are suspicious. Easy clean samples have few events as well.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"losses"})
    built_on: ClassVar[tuple[type[Detector], ...]] = (ABL,)

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        losses = early_losses(inputs)  # (n, epochs)
        learnt = losses < np.median(losses, axis=0)
        events = (learnt[:, :-1] & ~learnt[:, 1:]).sum(axis=1)
        return -np.where(learnt.any(axis=1), events, losses.shape[1]).astype(np.float64)
