"""DAO, the dimensionality-aware outlier score (Anderberg, Bailey, Campello, Houle et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import LocalDetector
from detect.local import k_distance, lid
from detect.paper_code import PaperCode, mean_or_limit
from detect.search.neighbours import Neighbours


@dataclass(frozen=True, kw_only=True)
class DAO(LocalDetector):
    """Mean over o in N_k(x) of (kd(x) / kd(o)) ** LID(o).

    log: average LID(o) * ln(kd(x) / kd(o)) instead, as the CLIP paper's code does; the published form is
    `log=False`, in which a single neighbour of high dimension can outweigh all others.
    """

    min_k: ClassVar[int] = 2

    log: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.convention == "paper_code" and not self.log:
            raise ValueError("convention 'paper_code' averages logarithms, so log must be true, got False")

    def score_rows(self, table: Neighbours) -> np.ndarray:
        kd = k_distance(table)  # (m,)
        exponents = lid(table)[table.indices] * np.log(kd[:, None] / kd[table.indices])  # (m, k)
        return exponents.mean(axis=1) if self.log else np.exp(np.minimum(exponents, 700)).mean(axis=1)

    def paper_code_score(self, code: PaperCode) -> np.ndarray:
        ratios = code.radius()[:, None] / code.radius_of_neighbours()
        return mean_or_limit(code.dimension_of_neighbours() * np.log(ratios))
