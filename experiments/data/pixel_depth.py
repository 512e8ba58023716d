"""Grey pictures of more than 8 bits per pixel, and of floats, to 8 bits.

Whole numbers of 16 bits are scaled by the range of their type: 0 to 65535 becomes 0 to 255, whatever the picture
holds. Floats, and whole numbers of 32 bits, say nothing of their range: their least value becomes black, their
greatest white.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from experiments.data.damage import DecodeError

_BAND = 4_000_000  # pixels that are worked on at a time


def is_deep(mode: str) -> bool:
    """Whether Pillow's mode holds one number of more than 8 bits per pixel."""
    return mode in ("I", "F") or mode.startswith("I;16")


def to_8_bits(image: Image.Image, sixteen: bool, notes: list[str]) -> Image.Image:
    """A picture of a deep mode to grey; raises Damage if it holds no finite number.

    sixteen: whether the mode "I", 32 bits in memory, holds the 16 bits of a file.
    """
    notes.append("more than 8 bits")
    low, high = (0.0, 65535.0) if sixteen or image.mode.startswith("I;16") else _range(image, notes)
    scale = 255 / (high - low) if high > low else 0.0
    grey = np.empty((image.height, image.width), dtype=np.uint8)
    for top, values in _bands(image):
        values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
        grey[top : top + len(values)] = np.clip(np.rint((values - low) * scale), 0, 255)
    if high == low:
        grey[:] = 128
    return Image.fromarray(grey)


def _range(image: Image.Image, notes: list[str]) -> tuple[float, float]:
    """Least and greatest finite value; others are noted."""
    low, high, odd = np.inf, -np.inf, False
    for _, values in _bands(image):
        finite = values[np.isfinite(values)]
        odd |= len(finite) < values.size
        low, high = min(low, finite.min(initial=low)), max(high, finite.max(initial=high))
    if low > high:
        raise DecodeError("corrupt", "holds no finite number")
    if odd:
        notes.append("NaN or infinite pixels")
    return float(low), float(high)


def _bands(image: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, (rows, width) float64) of the whole picture."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield top, np.asarray(image.crop(box)).astype(np.float64)
