"""Local density and drift, two signs of a backdoor that fail on different things, in one score. Our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector, LocalDetector
from detect.drift import Drift
from detect.embeddings import DetectorInputs
from detect.lof import LOF
from detect.metrics import rank_share, robust_z
from detect.search.neighbours import Neighbours
from detect.slof import SLOF


@dataclass(frozen=True, kw_only=True)
class DriftDensity(LocalDetector):
    """Fisher's combination -ln(1 - u) - ln(1 - v) of a sample's rank shares u by density and v by `Drift`.

    Density: the largest robust z-score of ln SLOF and ln LOF, at `narrow` and at k neighbours, a 64th and an eighth
    of the scope. The narrow neighbourhood finds poisons that are few, the wide one those that are many among many
    concepts. Where k does not suit the data no score stands out, and z-scores, unlike ranks, stay small. Poisons
    that lie among the target's own images have no density of their own, but their embeddings still hang on the
    trigger, and drift. (Fisher, Statistical Methods for Research Workers, 1932, section 21.1; the shares take the
    place of p-values.)

    k, narrow: the wide and the narrow number of neighbours, self excluded.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"drift"})
    collapses_beyond_k: ClassVar[bool] = False
    built_on: ClassVar[tuple[type[Detector], ...]] = (Drift, LOF, SLOF)

    k: int = 256
    narrow: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.narrow <= self.k:
            raise ValueError(f"narrow must lie in 1..{self.k}, the wider neighbourhood k, got {self.narrow}")

    def score_neighbours(self, neighbours: Neighbours, inputs: DetectorInputs | None = None) -> np.ndarray:
        if inputs is None or inputs.drift is None:
            raise ValueError("DriftDensity needs drift beside the neighbour table")
        signs = [kind(k=k) for kind in (SLOF, LOF) for k in (self.narrow, self.k)]
        ratios = np.stack([sign.score_neighbours(neighbours) for sign in signs], axis=1)  # (n, 4)
        u = rank_share(robust_z(np.log(ratios)).max(axis=1))
        v = rank_share(Drift().score(inputs))
        return -np.log1p(-u) - np.log1p(-v)

    def score_rows(self, table: Neighbours) -> np.ndarray:
        raise TypeError("DriftDensity has no score of reference rows: of these, nobody looked at the images")
