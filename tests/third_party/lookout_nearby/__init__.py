"""A detector and a trigger that another package adds to Lookout."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks import Trigger
from attacks.triggers.base import Parameters
from detect import LocalDetector, Neighbours


@dataclass(frozen=True, kw_only=True)
class Nearby(LocalDetector):
    """Mean over i <= k of r_i."""

    def score_rows(self, table: Neighbours) -> np.ndarray:
        return table.distances.mean(axis=1)


@dataclass(frozen=True, kw_only=True)
class Corner(Trigger):
    """A white square of `side` pixels in the top left corner."""

    name: str = "corner"
    side: int = 6

    def draw(self, rng: np.random.Generator, size: int) -> Parameters:
        return {}

    def test_parameters(self, size: int) -> Parameters:
        return {}

    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        images[:, : self.side, : self.side] = 255
        return images
