"""SLOF, the simplified local outlier factor (Schubert, Zimek, Kriegel 2014)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector, LocalDetector
from detect.kdist import KDistance
from detect.local import k_distance
from detect.paper_code import PaperCode, mean_or_limit
from detect.search.neighbours import Neighbours


@dataclass(frozen=True, kw_only=True)
class SLOF(LocalDetector):
    """Mean over o in N_k(x) of kd(x) / kd(o)."""

    built_on: ClassVar[tuple[type[Detector], ...]] = (KDistance,)

    def score_rows(self, table: Neighbours) -> np.ndarray:
        kd = k_distance(table)  # (m,)
        return (kd[:, None] / kd[table.indices]).mean(axis=1)

    def paper_code_score(self, code: PaperCode) -> np.ndarray:
        return mean_or_limit(code.radius()[:, None] / code.radius_of_neighbours())
