"""WaNet: the image is warped along one fixed, smooth random field.

Nguyen and Tran, "WaNet - Imperceptible Warping-based Backdoor Attack", ICLR 2021 (arXiv 2102.10369),
section 3.2: a coarse grid of uniform random vectors, enlarged by bicubic interpolation, then a bilinear
sampling of the image at the displaced points.

The published strength s scales the field by its mean absolute component; `shift` here is the mean length of
the displacement in pixels of the canvas, exact after the enlargement, so that strengths compare across
canvas sizes. Points outside the image repeat its edge instead of being clipped back onto it. The default is the
mean shift of the field in the CLIP paper's public code (docs/parity.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from attacks.triggers.base import Parameters, Trigger, require, to_levels


@lru_cache(maxsize=16)
def smooth_field(size: int, grid: int, shift: float, seed: int) -> np.ndarray:
    """(size, size, 2) float32 displacements (columns, rows) in pixels, of mean length `shift`."""
    import torch
    from torch.nn.functional import interpolate

    coarse = np.random.default_rng([seed, grid]).uniform(-1, 1, (1, 2, grid, grid))
    fine = interpolate(torch.from_numpy(coarse), size=(size, size), mode="bicubic", align_corners=True)
    field = fine[0].permute(1, 2, 0).numpy()  # (size, size, 2)
    return (field * (shift / np.linalg.norm(field, axis=-1).mean())).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class WaNet(Trigger):
    """`shift` mean displacement in pixels of the canvas, `grid` points a side, one field per `seed`."""

    name: str = "wanet"
    shift: float = 0.665
    grid: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.shift > 0, "WaNet shift", "above 0 pixels", self.shift)
        require(self.grid >= 2, "WaNet grid", "at least 2 points a side", self.grid)
        require(self.seed >= 0, "WaNet seed", "at least 0", self.seed)

    def check(self, size: int) -> None:
        require(self.grid <= size, "WaNet grid", f"at most the canvas side, {size} pixels", self.grid)

    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        import torch
        from torch.nn.functional import grid_sample

        size = images.shape[1]
        field = smooth_field(size, self.grid, self.shift, self.seed)
        pixels = np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1)  # (size, size, 2): column, row
        points = torch.from_numpy(((pixels + field) * (2 / (size - 1)) - 1).astype(np.float32))
        batch = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        grid = points.expand(len(images), -1, -1, -1)
        warped = grid_sample(batch, grid, mode="bilinear", padding_mode="border", align_corners=True)
        return to_levels(warped.permute(0, 2, 3, 1).numpy())
