"""Trigger inversion: the smallest mask and pattern that, painted over images, send them to a caption.

Neural Cleanse (Wang et al., IEEE S&P 2019) for CLIP, as in Huang et al. (ICLR 2025, natural backdoors): a mask m
and a pattern p, the same for all images, are optimised so that x * (1 - m) + p * m is taken for the target
caption, with the smallest mask that succeeds. The weight of the mask's size follows Neural Cleanse: it rises while
the attack succeeds and falls while it does not; the smallest mask that reached the wanted success is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attacks.pairs import Pairs
from experiments.clip.model import TrainedModel
from experiments.clip.zero_shot import class_weights
from experiments.data.pairs import TestSet

Track = Callable[[Iterable[int], int, str, str], Iterable[int]]


@dataclass(frozen=True)
class InversionConfig:
    """How a trigger is inverted.

    images: clean images to optimise on, and as many others to test on.
    steps, lr, batch: of Adam on the mask's and the pattern's logits.
    success: share of a batch that must reach the target before the mask is made smaller.
    weight: first weight of the mask's size. It is multiplied by 1.5 after `patience` steps with success, and
        divided by 1.5 after as many without.
    """

    images: int = 512
    steps: int = 400
    lr: float = 0.1
    batch: int = 64
    success: float = 0.95
    weight: float = 0.05
    patience: int = 5

    def __post_init__(self) -> None:
        for name in ("images", "steps", "batch", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"task.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.success <= 1:
            raise ValueError(f"task.success must lie in (0, 1], got {self.success}")
        for name in ("lr", "weight"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"task.{name} must be above 0 and finite, got {getattr(self, name)}")


@dataclass(frozen=True)
class InvertedTrigger:
    """mask: (size, size) float32 in [0, 1].  pattern: (size, size, 3) float32 in [0, 1].

    success: share of `held_out` other images that are taken for the target; before: the share without the trigger.
    reached: whether a batch of the optimisation reached the wanted success.
    """

    mask: np.ndarray
    pattern: np.ndarray
    success: float
    before: float
    held_out: int
    reached: bool

    @property
    def area(self) -> float:
        """Share of the image that the mask covers."""
        return float(self.mask.mean())

    def paint(self, images: np.ndarray) -> np.ndarray:
        """(b, size, size, 3) uint8 -> copies with the trigger."""
        mask = self.mask[None, :, :, None]
        return to_bytes(images / 255 * (1 - mask) + self.pattern[None] * mask)

    def save(self, folder: Path) -> None:
        np.savez(
            folder / "trigger.npz",
            mask=self.mask,
            pattern=self.pattern,
            numbers=np.array([self.success, self.before, self.held_out, self.reached]),
        )

    @classmethod
    def load(cls, folder: Path) -> InvertedTrigger:
        with np.load(folder / "trigger.npz", allow_pickle=False) as file:
            success, before, held_out, reached = file["numbers"]
            return cls(file["mask"], file["pattern"], float(success), float(before), int(held_out), bool(reached))


def invert(
    model: TrainedModel,
    weights: Tensor,
    target: int,
    used: np.ndarray,
    tested: np.ndarray,
    config: InversionConfig,
    seed: int,
    track: Track = lambda items, total, label, unit: items,
) -> InvertedTrigger:
    """The smallest trigger that was found for one caption.

    weights: (d, captions) unit-length text embeddings of what an image may be taken for; `target` is a column.
    used, tested: (b, size, size, 3) uint8 images to optimise on, and others to test on.
    """
    finder = _Finder(model, weights, target, config)
    with frozen(model):
        mask, pattern, reached = finder.find(used, seed, track)
        with torch.inference_mode():
            before, after = finder.share(tested, None), finder.share(tested, (mask, pattern))
    return InvertedTrigger(
        mask[0, 0].cpu().numpy(),
        pattern[0].permute(1, 2, 0).cpu().numpy(),
        after,
        before,
        len(tested),
        reached,
    )


class _Finder:
    """The optimisation, for one model and one target."""

    def __init__(self, model: TrainedModel, weights: Tensor, target: int, config: InversionConfig) -> None:
        self.model, self.weights, self.target, self.config = model, weights.clone(), target, config

    def logits(self, x: Tensor) -> Tensor:
        return 100 * F.normalize(self.model.image(x), dim=1) @ self.weights

    def share(self, images: np.ndarray, trigger: tuple[Tensor, Tensor] | None) -> float:
        """Share of `images` that is taken for the target."""
        hits = 0
        for begin in range(0, len(images), 256):
            x = self.model.pixels(torch.from_numpy(images[begin : begin + 256]))
            if trigger is not None:
                x = _painted(x, *trigger)
            hits += int((self.logits(x).argmax(dim=1) == self.target).sum())
        return hits / len(images)

    def find(self, images: np.ndarray, seed: int, track: Track) -> tuple[Tensor, Tensor, bool]:
        """(1, 1, size, size) mask, (1, 3, size, size) pattern, and whether they reached the wanted success."""
        config, device = self.config, self.model.device
        draw = torch.Generator().manual_seed(seed)
        size = images.shape[1]
        a = (0.1 * torch.randn(1, 1, size, size, generator=draw) - 1).to(device).requires_grad_()
        b = (0.1 * torch.randn(1, 3, size, size, generator=draw)).to(device).requires_grad_()
        optimiser = torch.optim.Adam([a, b], lr=config.lr, betas=(0.5, 0.9))
        pixels = torch.from_numpy(images)
        goal = torch.full((min(config.batch, len(images)),), self.target, device=device)
        weight, streak = config.weight, 0
        best: tuple[Tensor, Tensor] | None = None
        smallest = float("inf")
        for _ in track(range(config.steps), config.steps, "inverting", "step"):
            rows = torch.randint(len(images), (len(goal),), generator=draw)
            mask, pattern = torch.sigmoid(a), torch.sigmoid(b)
            logits = self.logits(_painted(self.model.pixels(pixels[rows]), mask, pattern))
            loss = F.cross_entropy(logits, goal) + weight * mask.sum() / size
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            success = float((logits.argmax(dim=1) == goal).float().mean())
            area = float(mask.detach().mean())
            if success >= config.success and area < smallest:
                best, smallest = (mask.detach().clone(), pattern.detach().clone()), area
            streak = max(streak, 0) + 1 if success >= config.success else min(streak, 0) - 1
            if abs(streak) >= config.patience:
                weight *= 1.5 if streak > 0 else 1 / 1.5
                streak = 0
        if best is None:
            return torch.sigmoid(a).detach(), torch.sigmoid(b).detach(), False
        return *best, True


def _painted(x: Tensor, mask: Tensor, pattern: Tensor) -> Tensor:
    return x * (1 - mask) + pattern * mask


@contextmanager
def frozen(model: TrainedModel) -> Iterator[None]:
    """The gradient goes to the trigger alone."""
    wanted = [parameter for parameter in model.clip.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


class Choices:
    """What an image may be taken for: `names`, each of them in all of `templates` (`{}` for a whole caption)."""

    def __init__(self, names: Sequence[str], templates: Sequence[str] = ("{}",)) -> None:
        self.names, self.templates = tuple(names), tuple(templates)
        self._weights: Tensor | None = None

    def weights(self, model: TrainedModel) -> Tensor:
        """Unit-length text embeddings, (d, names), computed for the first model and then kept."""
        if self._weights is None:
            self._weights = class_weights(model, self.names, self.templates).clone()
        return self._weights


def images_against(test: TestSet, pairs: Pairs, name: str, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `number` images to optimise on, and as many others to test on: of the test set without the class
    `name`, or of the pairs where the test set has fewer than 64 images."""
    source: Any = test if len(test) >= 64 else pairs
    rows = np.arange(len(source))
    if source is test and name in test.classes:
        rows = rows[np.asarray(test.labels) != test.label(name)]
    rows = np.random.default_rng([seed, 1]).permutation(rows)
    half = min(number, len(rows) // 2)
    return source.images(np.sort(rows[:half])), source.images(np.sort(rows[half : 2 * half]))


def caption_weights(model: TrainedModel, captions: list[str]) -> Tensor:
    """Unit-length text embeddings of captions, (d, captions)."""
    with torch.inference_mode():
        return F.normalize(model.text(captions).float(), dim=1).T


def to_bytes(x: np.ndarray) -> np.ndarray:
    """[0, 1] -> uint8."""
    return np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)
