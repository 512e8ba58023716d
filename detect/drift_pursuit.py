"""Pursuit that also looks at how far images drift. Our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector
from detect.drift import Drift
from detect.embeddings import DetectorInputs
from detect.pursuit import Pursuit
from detect.search.neighbours import Neighbours


@dataclass(frozen=True, kw_only=True)
class DriftPursuit(Pursuit):
    """`Pursuit` guided by `Drift` too, whose surprise is the third of the cubic mean.

    A group's members then count as surprising in the mean by Multiscale or by Drift, whichever is larger.

    k, narrow: the wide and the narrow number of neighbours of Multiscale, self excluded.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"drift"})
    built_on: ClassVar[tuple[type[Detector], ...]] = (Drift, Pursuit)

    def signs(self, neighbours: Neighbours, inputs: DetectorInputs) -> list[np.ndarray]:
        return [*super().signs(neighbours, inputs), Drift().score(inputs)]
