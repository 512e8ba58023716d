"""Tandem: two signs of a backdoor that hold however many poisons there are, in one score. Our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import LocalDetector
from detect.embeddings import Evidence
from detect.flicker import Flicker
from detect.lid import LID
from detect.metrics import rank_share
from detect.neighbours import Neighbours


@dataclass(frozen=True, kw_only=True)
class Tandem(LocalDetector):
    """Fisher's combination -sum ln(1 - u) of a sample's rank share u in (0, 1) by two signs.

    LID: poisons keep something of what their images really show, so their neighbourhood has more dimensions than a
    clean concept's, also where they are each other's neighbours and density ratios collapse. Only where about k of
    them share a scope the estimate sees the edge of their crowd, and few dimensions; so its share is the mean of
    those at k and at half of k. Flicker: what the caption says goes away with a gentle change to the image. One
    strong sign is enough. (Fisher, Statistical Methods for Research Workers, 1932, section 21.1; the shares take
    the place of p-values.)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text", "views"})
    smallest_k: ClassVar[int] = 2 * LID.smallest_k
    crowds: ClassVar[bool] = False

    k: int = 64
    slight: float = 0.02

    def score_neighbours(self, neighbours: Neighbours, evidence: Evidence | None = None) -> np.ndarray:
        if evidence is None:
            raise ValueError("Tandem needs evidence beside the neighbour table: text and views")
        wide, narrow = (rank_share(LID(k=k).score_neighbours(neighbours)) for k in (self.k, self.k // 2))
        flicker = rank_share(Flicker(slight=self.slight).score(evidence))
        return -np.log1p(-(wide + narrow) / 2) - np.log1p(-flicker)

    def rows(self, table: Neighbours) -> np.ndarray:
        raise TypeError("Tandem has no score of reference rows: of these, nobody looked at the images")
