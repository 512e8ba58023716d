"""BadNets: a small patch pasted over the image.

Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain",
2017 (arXiv 1708.06733), in the form that Carlini and Terzis, "Poisoning and Backdooring Contrastive
Learning", ICLR 2022, use on CLIP: a random place in every poisoned image, the centre at test time.

The patch is black with a white pixel at every even row and even column. The paper uses 16 pixels of 224.
Its code keeps the patch one patch width away from the top and left edges; here every place is as likely.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks.triggers.base import Parameters, Trigger, require


def dotted_patch(size: int) -> np.ndarray:
    """uint8 (size, size, 3): 255 where row and column are both even, 0 elsewhere."""
    patch = np.zeros((size, size, 3), np.uint8)
    patch[::2, ::2] = 255
    return patch


@dataclass(frozen=True, kw_only=True)
class BadNets(Trigger):
    """A patch of `size` pixels; `place` is "random" or "centre" for the poisoned samples."""

    name: str = "badnets"
    size: int = 16
    place: str = "random"

    def __post_init__(self) -> None:
        require(self.size >= 1, "BadNets size", "at least 1 pixel", self.size)
        require(self.place in ("random", "centre"), "BadNets place", "'random' or 'centre'", self.place)

    def check(self, size: int) -> None:
        require(self.size <= size, "BadNets size", f"at most the canvas side, {size} pixels", self.size)

    def draw(self, rng: np.random.Generator, size: int) -> Parameters:
        if self.place == "centre":
            return self.test_parameters(size)
        top, left = rng.integers(0, size - self.size + 1, 2)
        return {"top": int(top), "left": int(left)}

    def test_parameters(self, size: int) -> Parameters:
        middle = (size - self.size) // 2
        return {"top": middle, "left": middle}

    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        return self._paste(images, parameters, dotted_patch(self.size))

    def _paste(self, images: np.ndarray, parameters: Sequence[Parameters], patch: np.ndarray) -> np.ndarray:
        """The images with `patch`, uint8 (size, size, 3), at the places drawn."""
        for image, where in zip(images, parameters, strict=True):
            top, left = where["top"], where["left"]
            image[top : top + self.size, left : left + self.size] = patch
        return images
