"""Blended injection with another picture for each sample: the trigger is the mixture of two images itself.

As Chen, Liu, Li, Lu, Song (2017, arXiv 1712.05526, section 4.3) blend, x' = (1 - alpha) x + alpha * picture, but
the picture is another image of the data, drawn for each sample, so that no fixed pattern exists. Our own
choice of a dynamic trigger that needs no generator network.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks.triggers.base import Parameters, Trigger, require, to_levels


@dataclass(frozen=True, kw_only=True)
class BlendedOther(Trigger):
    """`alpha` is the picture's share, 0 < alpha < 1."""

    name: str = "blended_other"
    alpha: float = 0.3

    def __post_init__(self) -> None:
        require(0 < self.alpha < 1, "BlendedOther alpha", "above 0 and below 1", self.alpha)

    @property
    def blends_pictures(self) -> bool:
        return True

    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        pictures = np.stack([own["picture"] for own in parameters]).astype(np.float32)
        return to_levels(np.float32(1 - self.alpha) * images + np.float32(self.alpha) * pictures)
