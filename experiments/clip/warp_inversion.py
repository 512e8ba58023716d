"""Warp inversion: one small smooth displacement of all pixels, the same for all images, towards a caption.

A trigger such as WaNet's (Nguyen and Tran, ICLR 2021) has no small mask: it bends the whole image. So the shift of
each pixel is bounded, and what counts is how far the images come: the mean margin of their cosine with the target
over that with the nearest other caption. Our own, in the manner of CLIP-Inspector (Jindal et al., CVPR 2026), which
bounds an added pattern and looks at the margin.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.clip.inversion import frozen
from experiments.clip.model import TrainedModel


@dataclass(frozen=True)
class WarpConfig:
    """How a warp is inverted.

    images: clean images to optimise on, and as many others to test on.
    steps, lr, batch: of Adam on the field's logits.
    shift: the largest displacement along each side, as a share of it.  grid: points of the field along each side.
    temperature: of the cosines in the loss.
    """

    images: int = 256
    steps: int = 60
    lr: float = 0.1
    batch: int = 32
    shift: float = 1 / 16
    grid: int = 8
    temperature: float = 0.1


@dataclass(frozen=True)
class InvertedWarp:
    """field: (2, grid, grid) float32, displacement in shares of the side, x first.

    margin: mean over `held_out` other images of cos(image, target) - the largest other cosine, with the warp.
    success: share of these that are taken for the target; before: the share without the warp.
    """

    field: np.ndarray
    margin: float
    success: float
    before: float
    held_out: int

    def save(self, folder: Path) -> None:
        np.savez(
            folder / "warp.npz",
            field=self.field,
            numbers=np.array([self.margin, self.success, self.before, self.held_out]),
        )

    @classmethod
    def load(cls, folder: Path) -> InvertedWarp:
        with np.load(folder / "warp.npz", allow_pickle=False) as file:
            margin, success, before, held_out = file["numbers"]
            return cls(file["field"], float(margin), float(success), float(before), int(held_out))


def invert_warp(
    model: TrainedModel,
    weights: Tensor,
    target: int,
    used: np.ndarray,
    tested: np.ndarray,
    config: WarpConfig,
    seed: int,
) -> InvertedWarp:
    """The warp that was found for one caption; the arguments are those of `inversion.invert`."""
    draw = torch.Generator().manual_seed(seed)
    start = 0.01 * torch.randn(1, 2, config.grid, config.grid, generator=draw)
    logits = start.to(model.device).requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=config.lr)
    weights, pixels = weights.clone(), torch.from_numpy(used)
    goal = torch.full((min(config.batch, len(used)),), target, device=model.device)
    with frozen(model):
        for _ in range(config.steps):
            rows = torch.randint(len(used), (len(goal),), generator=draw)
            cosines = _cosines(model, warp(model.pixels(pixels[rows]), config.shift * torch.tanh(logits)), weights)
            loss = F.cross_entropy(cosines / config.temperature, goal)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.inference_mode():
            field = config.shift * torch.tanh(logits)
            before, after = _tested(model, weights, tested, None), _tested(model, weights, tested, field)
    others = after.clone()
    others[:, target] = -torch.inf
    return InvertedWarp(
        field[0].cpu().numpy(),
        float((after[:, target] - others.max(dim=1).values).mean()),
        float((after.argmax(dim=1) == target).float().mean()),
        float((before.argmax(dim=1) == target).float().mean()),
        len(tested),
    )


def warp(x: Tensor, field: Tensor) -> Tensor:
    """(b, 3, size, size) images, (1, 2, grid, grid) shifts in shares of the side -> images, warped."""
    size = x.shape[-1]
    wide = F.interpolate(2 * field, size=(size, size), mode="bicubic", align_corners=True)  # 2: from -1 to 1
    own = F.affine_grid(torch.eye(2, 3, device=x.device)[None], [1, 3, size, size], align_corners=False)
    places = (own + wide.permute(0, 2, 3, 1)).expand(len(x), -1, -1, -1)
    return F.grid_sample(x, places, mode="bilinear", padding_mode="border", align_corners=False)


def _cosines(model: TrainedModel, x: Tensor, weights: Tensor) -> Tensor:
    return F.normalize(model.image(x), dim=1) @ weights


def _tested(model: TrainedModel, weights: Tensor, images: np.ndarray, field: Tensor | None) -> Tensor:
    """(b, captions) cosines."""
    parts = []
    for begin in range(0, len(images), 256):
        x = model.pixels(torch.from_numpy(images[begin : begin + 256]))
        parts.append(_cosines(model, x if field is None else warp(x, field), weights))
    return torch.cat(parts)
