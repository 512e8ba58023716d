"""DAO, the dimensionality-aware outlier score (Anderberg, Bailey, Campello, Houle et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector, LocalDetector
from detect.kdist import KDistance
from detect.lid import LID
from detect.local import k_distance, lid
from detect.paper_code import PaperCode, mean_or_limit
from detect.search.neighbours import Neighbours

FORMS = ("mean_log", "published", "authors")


@dataclass(frozen=True, kw_only=True)
class DAO(LocalDetector):
    """How far x is from its neighbours, relative to their own k-distances and local dimensions.

    form: how this is averaged over the neighbours o in N_k(x), one of
        mean_log   mean LID(o) ln(kd(x) / kd(o)), the default: the CLIP paper's average, on the right neighbours
        published  mean (kd(x) / kd(o)) ** LID(o), in which one neighbour of high dimension can outweigh the others
        authors    the same with the LID of its authors' code, (k - 1) / sum of ln(r_k / r_i), where ours is k / sum

    The CLIP paper's code itself, on the neighbours that it looks up, is `convention: paper_code`; it has no forms.
    """

    min_k: ClassVar[int] = 2
    built_on: ClassVar[tuple[type[Detector], ...]] = (KDistance, LID)

    form: str = "mean_log"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")
        if self.convention == "paper_code" and self.form != "mean_log":
            raise ValueError(
                f"convention 'paper_code' averages logarithms, so form must be mean_log, got {self.form!r}"
            )

    @property
    def definition(self) -> str:
        return self.form if self.convention == "published" else self.convention

    def score_rows(self, table: Neighbours) -> np.ndarray:
        kd, dimension = k_distance(table), lid(table)  # (m,)
        if self.form == "authors":
            dimension = dimension * (table.k - 1) / table.k
        exponents = dimension[table.indices] * np.log(kd[:, None] / kd[table.indices])  # (m, k)
        if self.form == "mean_log":
            return exponents.mean(axis=1)
        return np.exp(np.minimum(exponents, 700)).mean(axis=1)

    def paper_code_score(self, code: PaperCode) -> np.ndarray:
        ratios = code.radius()[:, None] / code.radius_of_neighbours()
        return mean_or_limit(code.dimension_of_neighbours() * np.log(ratios))
