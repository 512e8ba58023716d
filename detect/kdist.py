"""k-dist: the distance to the k-th nearest neighbour (Ramaswamy, Rastogi, Shim 2000)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detect.base import LocalDetector
from detect.local import k_distance
from detect.paper_code import PaperCode
from detect.search.neighbours import Neighbours


@dataclass(frozen=True, kw_only=True)
class KDistance(LocalDetector):
    """kd(x) = r_k(x), the distance from x to its k-th nearest neighbour."""

    def score_rows(self, table: Neighbours) -> np.ndarray:
        return k_distance(table)

    def paper_code_score(self, code: PaperCode) -> np.ndarray:
        return code.radius()
