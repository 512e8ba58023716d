"""LID: local intrinsic dimensionality by maximum likelihood (Amsaleg et al. 2015; Levina and Bickel 2004)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import LocalDetector
from detect.local import lid
from detect.paper_code import PaperCode
from detect.search.neighbours import Neighbours


@dataclass(frozen=True, kw_only=True)
class LID(LocalDetector):
    """-1 / mean over i <= k of ln(r_i / r_k)."""

    min_k: ClassVar[int] = 2

    k: int = 64

    def score_rows(self, table: Neighbours) -> np.ndarray:
        return lid(table)

    def paper_code_score(self, code: PaperCode) -> np.ndarray:
        return code.dimension()
