"""Cognitive Distillation (Huang, Ma, Erfani, Bailey, ICLR 2023): how much of an image decides its embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from detect.base import Detector
from detect.embeddings import DetectorInputs, Encoder

if TYPE_CHECKING:
    from torch import Generator, Tensor


@dataclass(frozen=True, kw_only=True)
class CognitiveDistillation(Detector):
    """Minus ||m||_1 of the mask m that keeps the embedding f while it hides all it can (equation 1):

        ||f(x) - f(x * m + (1 - m) * d)||_1 + gamma * ||m||_1 + beta * TV(m),

    d a colour drawn anew at every step. The trigger alone decides the embedding of a poisoned image, so its mask
    becomes small. As in the authors' code m = (tanh(p) + 1) / 2 with p = 1 at the start, Adam's betas are 0.1, the
    first term is a mean over the embedding, and TV is the mean of squared steps. The mask norm grows with the
    pixels, so gamma is tied to the image's size (224 in the paper). The CLIP paper's code: docs/parity.md.

    steps: of Adam, at the rate `lr`.  lr: learning rate.  gamma, beta: weights of the mask's norm and of its TV.
    batch_size: images at a time.

    >>> import numpy as np, torch
    >>> from detect import CognitiveDistillation, DetectorInputs, Embeddings
    >>> class Encoder:  # a CLIP model's; here the pixels themselves
    ...     def image(self, x):
    ...         return x.flatten(1)
    >>> pixels = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> x = Embeddings.of(pixels.flatten(1))  # (n, d)
    >>> inputs = DetectorInputs(x, encoder=Encoder(), images=lambda rows: pixels[rows])
    >>> CognitiveDistillation(steps=5).score(inputs).shape
    (6,)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"encoder", "images"})

    steps: int = 100
    lr: float = 0.1
    gamma: float = 0.001
    beta: float = 100.0
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.lr <= 0:
            raise ValueError(f"lr must be above 0, got {self.lr}")

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        import torch
        from tqdm import tqdm

        assert inputs.encoder is not None
        assert inputs.images is not None
        scores = np.full(len(inputs.embeddings), np.nan)
        generator = torch.Generator().manual_seed(self.seed)
        starts = range(0, len(scores), self.batch_size)
        for start in tqdm(starts, "cognitive distillation", unit="batch", disable=None, leave=False):
            rows = np.arange(start, min(start + self.batch_size, len(scores)))
            mask = self.masks(inputs.encoder, inputs.images(rows), generator)
            scores[rows] = -mask.double().sum(dim=(1, 2, 3)).cpu().numpy()
        return scores

    def masks(self, encoder: Encoder, images: Tensor, generator: Generator) -> Tensor:
        """Masks (b, 1, H, W) in [0, 1] of images (b, 3, H, W)."""
        import torch

        b, channels, height, width = images.shape
        amp = torch.autocast(images.device.type, enabled=images.device.type == "cuda")
        with torch.no_grad(), amp:
            whole = encoder.image(images).float()  # (b, d)
        free = torch.ones(b, 1, height, width, device=images.device, requires_grad=True)
        optimiser = torch.optim.Adam([free], lr=self.lr, betas=(0.1, 0.1))
        for _ in range(self.steps):
            mask = (torch.tanh(free) + 1) / 2
            colour = torch.rand(b, channels, 1, 1, generator=generator).to(images.device)
            with amp:
                seen = encoder.image(images * mask + (1 - mask) * colour).float()
            apart = (seen - whole).abs().mean(dim=1)  # (b,)
            steps = mask.diff(dim=2).square().sum(dim=(1, 2, 3)) + mask.diff(dim=3).square().sum(dim=(1, 2, 3))
            loss = apart + self.gamma * mask.sum(dim=(1, 2, 3)) + self.beta * steps / (height * width)
            (free.grad,) = torch.autograd.grad(loss.sum(), free)  # and no gradient for the encoder's weights
            optimiser.step()
        return ((torch.tanh(free) + 1) / 2).detach()
