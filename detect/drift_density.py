"""Local density and drift in one score: two signs of a backdoor that fail in different cases. Our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector
from detect.drift import Drift
from detect.embeddings import DetectorInputs
from detect.metrics import rank_share
from detect.multiscale import Multiscale
from detect.search.neighbours import Neighbours


@dataclass(frozen=True, kw_only=True)
class DriftDensity(Multiscale):
    """The cubic mean of two surprises: -ln(1 - u) by `Multiscale` and -ln(1 - v) by `Drift`; u, v: rank shares.

    Poisons that lie among the target's own images have no unusual density, but their embeddings still depend on the
    trigger, so they drift. A trigger may survive all views; then only density detects it. So the stronger sign
    counts most. In Fisher's sum of the two surprises a weak sign would dilute a strong one.

    k, narrow: the wide and the narrow number of neighbours, self excluded.
    """

    version: ClassVar[int] = 2
    needs: ClassVar[frozenset[str]] = frozenset({"drift"})
    built_on: ClassVar[tuple[type[Detector], ...]] = (Drift, Multiscale)

    def score_neighbours(self, neighbours: Neighbours, inputs: DetectorInputs | None = None) -> np.ndarray:
        if inputs is None or inputs.drift is None:
            raise ValueError("DriftDensity needs drift beside the neighbour table")
        u = rank_share(Multiscale(k=self.k, narrow=self.narrow).score_neighbours(neighbours))
        v = rank_share(Drift().score(inputs))
        return np.cbrt((np.log1p(-u) ** 3 + np.log1p(-v) ** 3) / -2)

    def score_rows(self, table: Neighbours) -> np.ndarray:
        raise TypeError("DriftDensity has no score of reference rows: of these, nobody looked at the images")
