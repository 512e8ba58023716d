"""What an attack needs to know of a data set: its ids, its captions and its images on a common canvas."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Pairs(Protocol):
    """Image-caption pairs, addressed by row.

    The *canvas* is the image after resize and centre crop to the model's input size. Triggers are applied to
    it; augmentation comes after, for clean and poisoned rows alike, so that a poisoned
    image differs from a clean one by its trigger alone.
    """

    @property
    def ids(self) -> np.ndarray:
        """(n,) int64, unique, fixed for the life of the data."""

    @property
    def captions(self) -> Sequence[str]:
        """(n,) one caption per row."""

    @property
    def size(self) -> int:
        """Side of the square canvas, in pixels."""

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Canvases of `rows` (b,) as uint8 (b, size, size, 3)."""

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class ArrayPairs:
    """Pairs held in memory: `pixels` is uint8 (n, size, size, 3); ids count from 0 where not given."""

    pixels: np.ndarray
    captions: Sequence[str]
    ids: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        pixels = np.asarray(self.pixels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (pixels.shape[1],) * 2 + (3,):
            raise ValueError(f"pixels must be uint8 (n, size, size, 3), got {pixels.dtype} {pixels.shape}")
        ids = np.arange(len(pixels)) if self.ids is None else np.asarray(self.ids)
        if not len(pixels) == len(self.captions) == len(ids):
            raise ValueError(f"{len(pixels)} images, {len(self.captions)} captions and {len(ids)} ids")
        object.__setattr__(self, "pixels", pixels)
        object.__setattr__(self, "ids", ids.astype(np.int64))

    @property
    def size(self) -> int:
        """Side of the canvas, in pixels."""
        return self.pixels.shape[1]

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Canvases of `rows` (b,) as uint8 (b, size, size, 3)."""
        return self.pixels[rows]

    def __len__(self) -> int:
        return len(self.pixels)
