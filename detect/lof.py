"""LOF, the local outlier factor (Breunig, Kriegel, Ng, Sander 2000)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector, LocalDetector
from detect.kdist import KDistance
from detect.local import floored, k_distance
from detect.search.neighbours import Neighbours


@dataclass(frozen=True, kw_only=True)
class LOF(LocalDetector):
    """Mean lrd(o) / lrd(x), where lrd(x) = 1 / mean reach(x, o) and reach(x, o) = max(kd(o), d(x, o))."""

    built_on: ClassVar[tuple[type[Detector], ...]] = (KDistance,)

    def score_rows(self, table: Neighbours) -> np.ndarray:
        kd = k_distance(table)  # (m,)
        reach = np.maximum(kd[table.indices], floored(table)).mean(axis=1)  # 1 / lrd
        return (reach[:, None] / reach[table.indices]).mean(axis=1)
