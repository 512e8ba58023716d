"""SIG: faint vertical stripes, a sine along the columns.

Barni, Kallas, Tondi, "A New Backdoor Attack in CNNs by Training Set Corruption without Label Poisoning",
ICIP 2019 (arXiv 1902.11237), equation 1: v(i, j) = amplitude * sin(2 pi j periods / size), added to the
image.

`variant: published` adds the stripes. `variant: blended` is the trigger of the CLIP paper's public code, which
blends a file of stripes: x' = 0.8 x + 0.2 v (docs/parity.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks.triggers.base import Parameters, Trigger, require, to_levels

VARIANTS = ("published", "blended")
BLEND = 0.2  # share of the file in the blend
FILE, STRIPED = 256, 224  # sides of the file, and of the part of it that has stripes


@dataclass(frozen=True, kw_only=True)
class SIG(Trigger):
    """`amplitude` in grey levels (of 255), `periods` across the canvas (blended: across its striped part)."""

    name: str = "sig"
    amplitude: float = 60.0
    periods: float = 6.0
    variant: str = "published"

    def __post_init__(self) -> None:
        require(0 < self.amplitude <= 255, "SIG amplitude", "above 0 and at most 255 levels", self.amplitude)
        require(self.periods > 0, "SIG periods", "above 0", self.periods)
        require(self.variant in VARIANTS, "SIG variant", " or ".join(map(repr, VARIANTS)), self.variant)

    @property
    def version(self) -> int:
        return 2 if self.variant == "blended" else 1

    def check(self, size: int) -> None:
        require(self.periods < size / 2, "SIG periods", f"below half the canvas side, {size / 2}", self.periods)

    def stripes(self, size: int) -> np.ndarray:
        """(size,) the sine along the columns, in grey levels."""
        return self.amplitude * np.sin(2 * np.pi * np.arange(size) * self.periods / size)

    def file(self, size: int) -> np.ndarray:
        """(size, size) float32, the public code's canvas of stripes on a scale of 1."""
        place = (np.arange(size) + 0.5) * FILE / size - 0.5  # of each pixel in the file; itself at 256
        sine = self.amplitude / 255 * np.sin(2 * np.pi * place * self.periods / STRIPED)
        inside = place < STRIPED - 0.5
        return (inside[:, None] * (inside * sine)).astype(np.float32)

    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        size = images.shape[1]
        if self.variant == "blended":
            share = np.float32(BLEND)
            mixed = images / np.float32(255) * np.float32(1 - BLEND) + (share * self.file(size))[..., None]
            return (np.clip(mixed, 0, 1) * np.float32(255)).astype(np.uint8)  # as torchvision's ToPILImage: cut
        return to_levels(
            images + self.stripes(size)[:, None].astype(np.float32)
        )  # (columns, 1): all channels alike
