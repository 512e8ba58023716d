"""Tandem: LID, LOF and Flicker in one score, as they fail in different cases. Our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector, LocalDetector
from detect.embeddings import DetectorInputs
from detect.flicker import Flicker
from detect.lid import LID
from detect.lof import LOF
from detect.metrics import rank_share
from detect.search.neighbours import Neighbours


@dataclass(frozen=True, kw_only=True)
class Tandem(LocalDetector):
    """Fisher's combination -sum ln(1 - u) of a sample's rank shares u in (0, 1) by neighbourhood and by Flicker.

    Neighbourhood: Fisher's combination, ranked again, of the shares by LID at k and by the larger of LID and
    LOF at k / 2. The embedding of a poison still depends on the true content of its image. So the neighbourhood of
    poisons has a higher dimension than that of a clean concept, also where they are each other's neighbours and
    density ratios collapse. But where a scope holds somewhat fewer poisons than k, LID measures the boundary of the
    poison cluster and is low; LOF still works there, or LID at the other k. Flicker: the match with the caption
    drops under mild augmentations. One strong signal is enough. (Fisher, Statistical Methods for Research Workers,
    1932, section 21.1; the shares take the place of p-values.)

    eps: of `Flicker`, a drop of the cosine too small to mean anything.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text", "views"})
    min_k: ClassVar[int] = 2 * LID.min_k
    collapses_beyond_k: ClassVar[bool] = False
    version: ClassVar[int] = 2
    built_on: ClassVar[tuple[type[Detector], ...]] = (LID, LOF, Flicker)

    k: int = 64
    eps: float = 0.02

    def score_neighbours(self, neighbours: Neighbours, inputs: DetectorInputs | None = None) -> np.ndarray:
        if inputs is None:
            raise ValueError("Tandem needs inputs beside the neighbour table: text and views")
        half = self.k // 2
        wide, narrow, ratio = (
            rank_share(sign.score_neighbours(neighbours)) for sign in (LID(k=self.k), LID(k=half), LOF(k=half))
        )
        neighbourhood = rank_share(_fisher(wide, np.maximum(narrow, ratio)))
        return _fisher(neighbourhood, rank_share(Flicker(eps=self.eps).score(inputs)))

    def score_rows(self, table: Neighbours) -> np.ndarray:
        raise TypeError("Tandem has no score of reference rows: their images were not augmented")


def _fisher(*shares: np.ndarray) -> np.ndarray:
    """-sum ln(1 - u) of shares u (n,) in (0, 1)."""
    return -sum(np.log1p(-share) for share in shares)
