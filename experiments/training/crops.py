"""How images are augmented in training: `train.augment`. Neither class needs torch until it is applied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Shift:
    """Random translation by up to `pixels`, edges mirrored: the crop that keeps a model from memorising pairs."""

    pixels: int = 3

    def __post_init__(self) -> None:
        if self.pixels < 0:
            raise ValueError(f"augment.pixels must be 0 or more, got {self.pixels}")

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.integers(0, 2 * self.pixels + 1, size=(count, 2))

    def apply(self, images: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """(b, s, s, 3) uint8, (b, 2) offsets -> (b, s, s, 3)."""
        side, pad = images.shape[1], self.pixels
        padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
        chosen = windows[np.arange(len(images)), drawn[:, 0], drawn[:, 1]]  # (b, 3, s, s)
        return np.ascontiguousarray(chosen.transpose(0, 2, 3, 1))


@dataclass(frozen=True)
class ResizedCrop:
    """torchvision's RandomResizedCrop, the paper's augmentation: a window of a share of the area, scaled back."""

    scale: Sequence[float] = (0.9, 1.0)

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"augment.scale must be two rising shares in (0, 1], got {list(self.scale)}")

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        return rng.integers(0, 2**63 - 1, size=count)

    def apply(self, images: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """(b, s, s, 3) uint8, (b,) seeds -> (b, s, s, 3)."""
        import torch
        from torchvision.transforms import InterpolationMode, RandomResizedCrop
        from torchvision.transforms.v2.functional import resized_crop

        side = images.shape[1]
        result = np.empty_like(images)
        for index, seed in enumerate(drawn):
            image = torch.from_numpy(images[index]).permute(2, 0, 1)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(seed))
                window = RandomResizedCrop.get_params(image, list(self.scale), [3 / 4, 4 / 3])
            crop = resized_crop(image, *window, [side, side], InterpolationMode.BICUBIC, antialias=True)
            result[index] = crop.permute(1, 2, 0).numpy()
        return result
