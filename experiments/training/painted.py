"""An inverted trigger painted over training images, which keep their captions."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.clip.inversion import to_bytes
from experiments.training.crops import ResizedCrop, Shift


@dataclass(frozen=True)
class Painted:
    """Another augmentation, and then the trigger on a share of the images.

    trigger: a file with `mask` (size, size) and `pattern` (size, size, 3), such as trigger.npz of `task=invert`.
    share: of the images that get it.  moved: whether it is moved to a random place, over the edges.
    augment: what comes before.
    """

    trigger: str
    share: float = 0.5
    moved: bool = True
    augment: Shift | ResizedCrop | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"augment.share must lie in (0, 1], got {self.share}")
        if not Path(self.trigger).is_file():
            raise ValueError(f"augment.trigger must be the path of a file, got {self.trigger!r}")

    @property
    def files(self) -> tuple[str, ...]:
        """Local files whose content decides the result."""
        return (self.trigger,)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.integers(0, 2**63 - 1, size=count)

    def apply(self, images: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """(b, s, s, 3) uint8, (b,) seeds -> (b, s, s, 3)."""
        generators = [np.random.default_rng(int(seed)) for seed in drawn]
        if self.augment is not None:
            inner = np.concatenate([self.augment.draw(rng, 1) for rng in generators])
            images = self.augment.apply(images, inner)
        result = images.copy()
        mask, pattern = _arrays(self.trigger)
        if mask.shape != images.shape[1:3] or pattern.shape != images.shape[1:]:
            raise ValueError(
                f"augment.trigger is of {mask.shape[0]} pixels a side, the images of {images.shape[1]}"
            )
        for index, rng in enumerate(generators):
            chosen, place = rng.random() < self.share, rng.integers(0, len(mask), 2) if self.moved else (0, 0)
            if chosen:
                m, p = (np.roll(part, tuple(place), axis=(0, 1)) for part in (mask[..., None], pattern))
                result[index] = to_bytes(images[index] / 255 * (1 - m) + p * m)
        return result


@functools.lru_cache(maxsize=2)
def _arrays(file: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(file, allow_pickle=False) as found:
        return found["mask"], found["pattern"]
