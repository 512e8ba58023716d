"""Blended injection: the whole image is mixed with one fixed picture.

Chen, Liu, Li, Lu, Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning", 2017
(arXiv 1712.05526), section 4.3: x' = (1 - alpha) x + alpha * pattern.

The paper on CLIP blends a cartoon picture at alpha 0.2. `pattern` takes the path of any image file; without
it the pattern is a seeded mosaic of `cells` x `cells` flat, saturated colours (each channel 0 or 255), the
same picture at every canvas size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from attacks.triggers.base import Parameters, Trigger, require, to_levels


@lru_cache(maxsize=16)
def mosaic(size: int, cells: int, seed: int) -> np.ndarray:
    """uint8 (size, size, 3): `cells` x `cells` flat colours, every channel 0 or 255."""
    colours = np.random.default_rng([seed, cells]).integers(0, 2, (cells, cells, 3), dtype=np.uint8) * 255
    cell = np.arange(size) * cells // size
    return colours[np.ix_(cell, cell)]


@lru_cache(maxsize=16)
def picture(path: str, size: int) -> np.ndarray:
    """uint8 (size, size, 3): the file's image, its middle square resized to the canvas.

    Raises ValueError for a file that is no image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            return np.asarray(ImageOps.fit(file.convert("RGB"), (size, size), Image.Resampling.BICUBIC))
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError) as error:
        raise ValueError(f"an attack's picture must be an image file, got {path!r}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Blended(Trigger):
    """`alpha` is the pattern's share, 0 < alpha <= 1."""

    name: str = "blended"
    alpha: float = 0.2
    pattern: str | None = None
    cells: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.alpha <= 1, "Blended alpha", "above 0 and at most 1", self.alpha)
        require(self.cells >= 1, "Blended cells", "at least 1", self.cells)
        if self.pattern is not None and not Path(self.pattern).is_file():
            raise ValueError(f"Blended pattern must be the path of an image file, got {self.pattern!r}")

    @property
    def files(self) -> tuple[str, ...]:
        return () if self.pattern is None else (self.pattern,)

    def check(self, size: int) -> None:
        self.picture(size)  # a file that is no image is refused now

    def picture(self, size: int) -> np.ndarray:
        """The fixed pattern, uint8 (size, size, 3)."""
        if self.pattern is None:
            return mosaic(size, self.cells, self.seed)
        return picture(self.pattern, size)

    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        pattern = np.float32(self.alpha) * self.picture(images.shape[1]).astype(np.float32)
        return to_levels(np.float32(1 - self.alpha) * images + pattern)
