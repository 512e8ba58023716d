"""WaNet: the image is warped along one fixed, smooth random field.

Nguyen and Tran, "WaNet - Imperceptible Warping-based Backdoor Attack", ICLR 2021 (arXiv 2102.10369),
section 3.2: a coarse grid of uniform random vectors, enlarged by bicubic interpolation, then a bilinear
sampling of the image at the displaced points.

The published strength s scales the field by its mean absolute component; `shift` here is the mean length of
the displacement in pixels of the canvas, exact after the enlargement, so that strengths compare across
canvas sizes. Points outside the image repeat its edge instead of being clipped back onto it. The default is the
mean shift of the field in the CLIP paper's public code (docs/parity.md).

`field` takes a given field instead, such as the file of that code: points to sample at, (size, size, 2) in [-1, 1]
as torch's grid_sample takes them with align_corners. As there, points outside the image are black.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

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


@lru_cache(maxsize=4)
def read_field(path: str) -> np.ndarray:
    """(height, width, 2) float32 points in [-1, 1] of a file: .npy, or a .pt that holds one tensor.

    ValueError for anything else; nothing is unpickled.
    """
    import pickle

    try:
        if Path(path).suffix == ".npy":
            found: Any = np.load(path, allow_pickle=False)
        else:
            import torch

            found = torch.load(path, map_location="cpu", weights_only=True)
        points = np.asarray(found, dtype=np.float32)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"WaNet field must be a .npy file or a .pt file of one tensor: {path}: {reason}"
        ) from error
    points = points[0] if points.ndim == 4 and len(points) == 1 else points
    if points.ndim != 3 or points.shape[2] != 2 or min(points.shape[:2]) < 2 or max(points.shape[:2]) > 4_096:
        raise ValueError(f"WaNet field must hold (height, width, 2) points, got {points.shape} in {path}")
    if not np.isfinite(points).all() or np.abs(points).max() > 2:
        raise ValueError(f"WaNet field must hold points in [-1, 1], or a little beyond, got others in {path}")
    return points


@lru_cache(maxsize=16)
def given_points(path: str, size: int) -> np.ndarray:
    """(size, size, 2) float32: the file's points, its displacements resized to the canvas."""
    import torch
    from torch.nn.functional import interpolate

    points = read_field(path)
    rows, columns = (np.linspace(-1, 1, side, dtype=np.float32) for side in points.shape[:2])
    moved = torch.from_numpy(points - np.stack(np.meshgrid(columns, rows), axis=-1)).permute(2, 0, 1)[None]
    if moved.shape[2:] != (size, size):
        moved = interpolate(moved, size=(size, size), mode="bilinear", align_corners=True)
    line = np.linspace(-1, 1, size, dtype=np.float32)
    return moved[0].permute(1, 2, 0).numpy() + np.stack(np.meshgrid(line, line), axis=-1)


@dataclass(frozen=True, kw_only=True)
class WaNet(Trigger):
    """`shift` mean displacement in pixels of the canvas, `grid` points a side, one field per `seed`; or `field`, a
    file of points, in place of all three."""

    name: str = "wanet"
    shift: float = 0.665
    grid: int = 4
    seed: int = 0
    field: str | None = None

    def __post_init__(self) -> None:
        if self.field is not None:
            require(Path(self.field).is_file(), "WaNet field", "the path of a file", self.field)
            read_field(self.field)
        require(self.shift > 0, "WaNet shift", "above 0 pixels", self.shift)
        require(self.grid >= 2, "WaNet grid", "at least 2 points a side", self.grid)
        require(self.seed >= 0, "WaNet seed", "at least 0", self.seed)

    @property
    def files(self) -> tuple[str, ...]:
        return () if self.field is None else (self.field,)

    def check(self, size: int) -> None:
        require(self.grid <= size, "WaNet grid", f"at most the canvas side, {size} pixels", self.grid)

    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        import torch
        from torch.nn.functional import grid_sample

        points = torch.from_numpy(self._points(images.shape[1]))
        batch = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        grid = points.expand(len(images), -1, -1, -1)
        outside = "border" if self.field is None else "zeros"
        warped = grid_sample(batch, grid, mode="bilinear", padding_mode=outside, align_corners=True)
        return to_levels(warped.permute(0, 2, 3, 1).numpy())

    def _points(self, size: int) -> np.ndarray:
        """(size, size, 2) float32 points in [-1, 1] to sample the image at."""
        if self.field is not None:
            return given_points(self.field, size)
        field = smooth_field(size, self.grid, self.shift, self.seed)
        pixels = np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1)  # (size, size, 2): column, row
        return ((pixels + field) * (2 / (size - 1)) - 1).astype(np.float32)
