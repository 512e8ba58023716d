"""SIG: faint vertical stripes, a sine along the columns.

Barni, Kallas, Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption without Label Poisoning",
ICIP 2019 (arXiv 1902.11237), equation 1: v(i, j) = amplitude * sin(2 pi j periods / size), added to the
image.

`variant: published` adds the stripes. `variant: reference` blends them at alpha 0.2, as the public code of
the CLIP paper does (it passes a file of stripes to its blended attack): x' = 0.8 x + 0.2 v. That dims the
image by a fifth and leaves a fifth of the amplitude; the file's own scale is not published, so v is the
published formula.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks.triggers.base import Parameters, Trigger, require, to_levels

BLEND = 0.2


@dataclass(frozen=True, kw_only=True)
class SIG(Trigger):
    """`amplitude` in grey levels (of 255), `periods` across the canvas."""

    name: str = "sig"
    amplitude: float = 60.0
    periods: float = 6.0
    variant: str = "published"

    def __post_init__(self) -> None:
        require(0 < self.amplitude <= 255, "SIG amplitude", "above 0 and at most 255 levels", self.amplitude)
        require(self.periods > 0, "SIG periods", "above 0", self.periods)
        require(
            self.variant in ("published", "reference"),
            "SIG variant",
            "'published' or 'reference'",
            self.variant,
        )

    def check(self, size: int) -> None:
        require(self.periods < size / 2, "SIG periods", f"below half the canvas side, {size / 2}", self.periods)

    def stripes(self, size: int) -> np.ndarray:
        """(size,) the sine along the columns, in grey levels."""
        return self.amplitude * np.sin(2 * np.pi * np.arange(size) * self.periods / size)

    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        stripes = self.stripes(images.shape[1])[:, None].astype(np.float32)  # (columns, 1): all channels alike
        if self.variant == "reference":
            return to_levels(np.float32(1 - BLEND) * images + np.float32(BLEND) * stripes)
        return to_levels(images + stripes)
