"""BppAttack: fewer colour levels, with dithering; the change depends on the image and has no pattern of its own.

Wang, Zhai, Ma, "BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural Networks via Image
Quantization and Contrastive Adversarial Learning", CVPR 2022. Each channel is rounded to `levels` evenly spaced
values; the error of a pixel is spread over its neighbours (Floyd and Steinberg 1976): 7/16 to the right, 3/16, 5/16
and 1/16 to the row below. Theirs also changes the training; an attacker who only poisons data cannot.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks.triggers.base import Parameters, Trigger, require, to_levels


@dataclass(frozen=True, kw_only=True)
class Bpp(Trigger):
    """`levels` values of each channel; `dither`: whether the error is spread, or the values are rounded alone."""

    name: str = "bpp"
    levels: int = 8
    dither: bool = True

    def __post_init__(self) -> None:
        require(2 <= self.levels <= 255, "Bpp levels", "2 to 255", self.levels)

    def _rounded(self, values: np.ndarray) -> np.ndarray:
        step = np.float32(255 / (self.levels - 1))
        return np.clip(np.rint(values / step), 0, self.levels - 1) * step

    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        if not self.dither:
            return to_levels(self._rounded(images.astype(np.float32)))
        size = images.shape[1]
        # A margin takes the errors that leave the canvas. Pixels with the same column + 2 row do not depend on each
        # other, as all errors come from a smaller sum; so they go side by side.
        x = np.pad(images.astype(np.float32), ((0, 0), (0, 1), (1, 1), (0, 0)))
        for front in range(3 * size - 2):
            row = np.arange(max(0, (front - size + 2) // 2), min(size - 1, front // 2) + 1)
            column = front - 2 * row + 1
            whole = self._rounded(x[:, row, column])
            error = x[:, row, column] - whole
            x[:, row, column] = whole
            for down, right, sixteenths in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                x[:, row + down, column + right] += error * np.float32(sixteenths / 16)
        return to_levels(x[:, :size, 1 : size + 1])
