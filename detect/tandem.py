"""Tandem: three signs of a backdoor in one score. Our own; it goes on where many poisons defeat a density ratio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import LocalDetector
from detect.embeddings import Evidence
from detect.flicker import Flicker
from detect.kdist import KDistance
from detect.neighbours import Neighbours
from detect.slof import SLOF


@dataclass(frozen=True, kw_only=True)
class Tandem(LocalDetector):
    """Fisher's combination -sum ln(1 - u) of a sample's rank share u in (0, 1) by three detectors.

    SLOF at k: sparser than its neighbours. It is the sharpest while fewer than k poisons share a scope, and
    misleads once more do. k-dist at `near`: poisons that are each other's neighbours still lie further apart than
    samples of a clean concept. Flicker: what the caption says goes away with a gentle change to the image. One
    strong sign is enough. (Fisher, Statistical Methods for Research Workers, 1932, section 21.1; the shares take
    the place of p-values.)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text", "views"})

    near: int = 4
    usual: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.near <= self.k:
            raise ValueError(f"near must lie in 1..k = {self.k}, got {self.near}")

    def score_neighbours(self, neighbours: Neighbours, evidence: Evidence | None = None) -> np.ndarray:
        if evidence is None:
            raise ValueError("Tandem needs evidence beside the neighbour table: text and views")
        sparse = KDistance(k=self.near).score_neighbours(neighbours)
        sparser = SLOF(k=self.k).score_neighbours(neighbours)
        signs = (sparse, sparser, Flicker(usual=self.usual).score(evidence))
        return -np.sum([np.log1p(-share(sign)) for sign in signs], axis=0)

    def rows(self, table: Neighbours) -> np.ndarray:
        raise TypeError("Tandem has no score of reference rows: of these, nobody looked at the images")


def share(scores: np.ndarray) -> np.ndarray:
    """Share of the samples that are less suspicious, (n,) in (0, 1); ties share their mean."""
    from scipy.stats import rankdata

    return (rankdata(scores) - 0.5) / len(scores)
