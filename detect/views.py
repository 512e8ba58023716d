"""Mild augmentations that keep the content of an image, but seldom a trigger.

Each breaks some kinds of trigger: mirroring those that depend on place and direction (warps, blended pictures),
zooming those with a period (stripes), smoothing fine patterns and patches, changes of colour filters. All map
images (b, 3, H, W) in [0, 1] to images of the same shape. None is random, so that a score does not depend on the
batch. `VIEWS` were chosen on the demo's attacks at seed 0, `DRIFT` on photographs as well.
A trigger that survives all of them is not found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MEAN, STD = (0.48, 0.46, 0.41), 0.27
"""Usual channel means and standard deviation of photographs (CLIP's, rounded)."""


def mirrored(x: Tensor) -> Tensor:
    return x.flip(3)


def zoomed(x: Tensor) -> Tensor:
    """The middle five sixths, at the size of the whole."""
    import torch
    from torch.nn import functional

    scale = torch.tensor([[5 / 6, 0, 0], [0, 5 / 6, 0]], device=x.device, dtype=x.dtype)
    grid = functional.affine_grid(scale.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def turned(x: Tensor) -> Tensor:
    """By 15 degrees about the middle, edges mirrored."""
    import math

    import torch
    from torch.nn import functional

    c, s = math.cos(math.radians(15)), math.sin(math.radians(15))
    turn = torch.tensor([[c, -s, 0], [s, c, 0]], device=x.device, dtype=x.dtype)
    grid = functional.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def smoothed(x: Tensor) -> Tensor:
    """By a Gaussian of 0.9 pixels."""
    from torchvision.transforms.v2 import functional

    return functional.gaussian_blur(x, [7, 7], [0.9, 0.9])


def levelled(x: Tensor) -> Tensor:
    """With the channel means and the spread of an average photograph."""
    mean = x.new_tensor(MEAN).view(1, 3, 1, 1)
    spread = x.std(dim=(2, 3), keepdim=True).clamp(min=1e-3)
    return ((x - x.mean(dim=(2, 3), keepdim=True)) / spread * STD + mean).clamp(0, 1)


def exchanged(x: Tensor) -> Tensor:
    """Red, green and blue change places."""
    return x[:, [2, 0, 1]]


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    view.__name__: view for view in (mirrored, zoomed, smoothed, levelled, exchanged)
}
"""Those whose agreement with the caption `Flicker` looks at."""

DRIFT: dict[str, Callable[[Tensor], Tensor]] = {
    view.__name__: view for view in (mirrored, turned, smoothed, levelled, exchanged)
}
"""Those from which `Drift` looks how far the embedding moves."""
