"""Near-identical copies of one image of the data: what a natural backdoor looks like.

Huang et al. (ICLR 2025) found one in CC3M: 798 pictures of one birthday cake, all with the same caption. Nobody had
planted it. Together with `captions: target` this trigger plants a similar group in any data, to see whether a scan
finds it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from attacks.triggers.base import Parameters, Trigger, require, to_levels


@dataclass(frozen=True, kw_only=True)
class NearCopies(Trigger):
    """Every sample shows one image of the data, each time moved a little, and a little brighter or darker.

    Args:
        shift: the largest move in pixels of the canvas, along each side; what leaves at one side is repeated there.
        brightness: the largest change of all grey levels, of 255.
        noise: standard deviation of each pixel's own change, in grey levels.
    """

    name: str = "near_copies"
    measures_success: ClassVar[bool] = False
    shift: int = 2
    brightness: float = 12.0
    noise: float = 3.0

    def __post_init__(self) -> None:
        for field in ("shift", "brightness", "noise"):
            require(getattr(self, field) >= 0, f"NearCopies {field}", "at least 0", getattr(self, field))

    @property
    def source_count(self) -> int:
        return 1

    def draw(self, rng: np.random.Generator, size: int) -> Parameters:
        down, right = (int(step) for step in rng.integers(-self.shift, self.shift + 1, 2))
        level = float(rng.uniform(-self.brightness, self.brightness))
        return {"down": down, "right": right, "level": level, "noise_seed": int(rng.integers(2**31))}

    def test_parameters(self, size: int) -> Parameters:
        return {"down": 0, "right": 0, "level": 0.0, "noise_seed": 0}  # a copy in its place

    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        side = images.shape[1]
        for image, drawn in zip(images, parameters, strict=True):
            rows, columns = (
                np.clip(np.arange(side) - drawn[step], 0, side - 1)  # the edge is repeated
                for step in ("down", "right")
            )
            noise = np.random.default_rng(drawn["noise_seed"]).normal(0, self.noise, image.shape)
            image[:] = to_levels(image[rows][:, columns] + drawn["level"] + noise)
        return images
