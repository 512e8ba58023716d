"""Density ratios at two neighbourhood sizes in one score. Our own, of SLOF and LOF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector, LocalDetector
from detect.lof import LOF
from detect.metrics import robust_z
from detect.search.neighbours import Neighbours
from detect.slof import SLOF


@dataclass(frozen=True, kw_only=True)
class Multiscale(LocalDetector):
    """The largest robust z-score over the data of ln SLOF and ln LOF, at `narrow` and at k neighbours.

    By default these are a 64th and an eighth of the scope. The narrow neighbourhood finds small groups
    of poisons, the wide one groups of more than `narrow` poisons in a scope. Where a k does not suit the data, no
    sample stands out, and all z-scores are small. Ranks would hide this.

    k, narrow: the wide and the narrow number of neighbours, self excluded.
    """

    collapses_beyond_k: ClassVar[bool] = False
    built_on: ClassVar[tuple[type[Detector], ...]] = (LOF, SLOF)

    k: int = 256
    narrow: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.narrow <= self.k:
            raise ValueError(f"narrow must lie in 1..{self.k}, the wider neighbourhood k, got {self.narrow}")

    def score_rows(self, table: Neighbours) -> np.ndarray:
        sizes = [table.at(size) for size in (self.narrow, self.k)]
        ratios = [kind(k=1).score_rows(same) for same in sizes for kind in (SLOF, LOF)]  # the table's width decides
        return robust_z(np.log(np.stack(ratios, axis=1))).max(axis=1)
