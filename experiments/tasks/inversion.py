"""`task=invert`: what would have to be painted over an image to send it to a caption?

Neural Cleanse (Wang et al., IEEE S&P 2019) for CLIP, as in Huang et al. (ICLR 2025, natural backdoors): a mask m
and a pattern p, the same for all images, are optimised so that x * (1 - m) + p * m is taken for the target
caption, with as small a mask as does it. A caption that has a trigger needs a small mask; for any other one much
of the image must be painted over.

The weight of the mask's size follows Neural Cleanse: it rises while the attack succeeds and falls while it does
not; the smallest mask that reached the wanted success is kept.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.pipeline.experiment import Experiment
from experiments.pipeline.runner import Runner
from experiments.pipeline.values import with_targets
from experiments.runtime.progress import track

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inversion:
    """An inverted trigger.

    mask: (size, size) float32 in [0, 1].  pattern: (size, size, 3) float32 in [0, 1].
    area: share of the image that the mask covers, the mean of `mask`.
    success: share of held-out images that are taken for the target; before: the share without the trigger.
    examples: (b, size, size, 3) uint8 clean images, and `painted` the same with the trigger.
    """

    target: str
    mask: np.ndarray
    pattern: np.ndarray
    area: float
    success: float
    before: float
    examples: np.ndarray
    painted: np.ndarray
    held_out: int

    def write(self, folder: Path) -> tuple[str, Sequence[Mapping[str, Any]]]:
        """trigger.png, trigger.npz and summary.md; what to print, and the row of results.csv."""
        np.savez(folder / "trigger.npz", mask=self.mask, pattern=self.pattern)
        self._picture(folder / "trigger.png")
        row: dict[str, Any] = {
            "target": self.target,
            "area": self.area,
            "pixels": float(self.mask.sum()),
            "success": self.success,
            "before": self.before,
            "held_out": self.held_out,
        }
        side = len(self.mask)
        text = (
            f"# Trigger for {self.target!r}\n\n"
            f"A mask of {row['pixels']:.0f} of {side * side} pixels ({100 * self.area:.1f} %) sends "
            f"{100 * self.success:.1f} % of {self.held_out} held-out images there "
            f"({100 * self.before:.1f} % without it).\n\ntrigger.png: mask, pattern, both, and images without and "
            "with it; trigger.npz: the arrays.\n"
        )
        (folder / "summary.md").write_text(text, encoding="utf-8")
        (folder / "trigger.json").write_text(json.dumps(row, indent=1))
        return text, [row]

    def _picture(self, file: Path) -> None:
        from PIL import Image

        mask = np.repeat(self.mask[:, :, None], 3, axis=2)
        top = [_bytes(mask), _bytes(self.pattern), _bytes(mask * self.pattern)]
        blank = np.full_like(top[0], 255)
        width = max(len(top), len(self.examples))
        lines = [[*top, *[blank] * (width - len(top))], list(self.examples), list(self.painted)]
        scale = max(1, 96 // len(self.mask))
        rows = []
        for line in lines:
            tiles = [
                np.pad(tile.repeat(scale, 0).repeat(scale, 1), ((3, 3), (3, 3), (0, 0)), constant_values=255)
                for tile in line
            ]
            rows.append(np.concatenate(tiles, axis=1))
        Image.fromarray(np.concatenate(rows, axis=0)).save(file)


@dataclass(frozen=True)
class Invert:
    """How a trigger is inverted.

    target: a caption, such as a group's; None: the zero-shot prompts of `target`, the attacks' target class.
    images: clean images to optimise on, and as many others to test on.
    steps, lr, batch: of Adam on the mask's and the pattern's logits.
    success: share of a batch that must reach the target before the mask is made smaller.
    weight: first weight of the mask's size; it changes by 1.5 whenever success is or is not reached for
        `patience` steps.
    others: captions that compete with the target where the data know no classes.
    """

    target: str | None = None
    images: int = 512
    steps: int = 400
    lr: float = 0.1
    batch: int = 64
    success: float = 0.95
    weight: float = 0.05
    patience: int = 5
    others: int = 200

    def __post_init__(self) -> None:
        for name in ("images", "steps", "batch", "patience", "others"):
            if getattr(self, name) < 1:
                raise ValueError(f"task.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.success <= 1:
            raise ValueError(f"task.success must lie in (0, 1], got {self.success}")

    def check(self, experiment: Experiment) -> None:
        """Nothing can be refused before the data are there."""

    def run(self, runner: Runner) -> Inversion:
        import torch

        model = runner.value("model")
        weights, target = self._classifier(runner)  # (d, classes)
        used, tested = self._images(runner)
        find = _Finder(self, model, weights, target, runner.experiment.seed)
        mask, pattern = find(used)
        with torch.inference_mode():
            before = find.reached(tested, None)
            after = find.reached(tested, (mask, pattern))
        chosen = tested[:8]
        painted = find.paint(find.model.pixels(torch.from_numpy(chosen)), mask, pattern)
        inversion = Inversion(
            self.target or runner.experiment.target,
            mask[0, 0].cpu().numpy(),
            pattern[0].permute(1, 2, 0).cpu().numpy(),
            float(mask.mean()),
            after,
            before,
            chosen,
            _bytes(painted.permute(0, 2, 3, 1).cpu().numpy()),
            len(tested),
        )
        log.info("trigger: %.1f %% of the image, success %.3f", 100 * inversion.area, after)
        return inversion

    @staticmethod
    def _test(runner: Runner) -> Any:
        return with_targets(runner.value("test"), runner.experiment.targets)

    def _classifier(self, runner: Runner) -> tuple[Any, int]:
        """Unit-length text embeddings of what an image may be taken for, (d, classes), and the target's place."""
        import torch

        from experiments.clip.zero_shot import class_weights

        model, test = runner.value("model"), self._test(runner)
        known = len(test.classes) > 1 and len(test) > 0
        with torch.inference_mode():
            if known:
                weights = class_weights(model, test.classes, test.templates)
                if self.target is None:
                    return weights, test.label(runner.experiment.target)
            else:
                if self.target is None:
                    raise ValueError("task.target must be a caption where the data know no classes")
                rng = np.random.default_rng(runner.experiment.seed)
                pairs = runner.value("pairs")
                rows = rng.permutation(len(pairs))[: self.others]
                captions = sorted({pairs.captions[row] for row in rows} - {self.target})
                weights = torch.nn.functional.normalize(model.text(captions).float(), dim=1).T
            own = torch.nn.functional.normalize(model.text([self.target]).float(), dim=1).T
            return torch.cat([weights, own], dim=1), weights.shape[1]

    def _images(self, runner: Runner) -> tuple[np.ndarray, np.ndarray]:
        """Images to optimise on and others to test on: of the test set without the target's, else of the data."""
        rng = np.random.default_rng([runner.experiment.seed, 1])
        source: Any = runner.value("pairs")
        rows = np.arange(len(runner.value("pairs")))
        test = self._test(runner)
        if len(test) >= 64:
            source, rows = test, np.arange(len(test))
            if self.target is None:
                rows = rows[np.asarray(test.labels) != test.label(runner.experiment.target)]
        rows = rng.permutation(rows)
        half = min(self.images, len(rows) // 2)
        return source.images(np.sort(rows[:half])), source.images(np.sort(rows[half : 2 * half]))


class _Finder:
    """The optimisation, for one model and one target."""

    def __init__(self, how: Invert, model: Any, weights: Any, target: int, seed: int) -> None:
        self.how, self.model, self.weights, self.target, self.seed = how, model, weights.clone(), target, seed

    def paint(self, x: Any, mask: Any, pattern: Any) -> Any:
        return x * (1 - mask) + pattern * mask

    def logits(self, x: Any) -> Any:
        import torch

        return 100 * torch.nn.functional.normalize(self.model.image(x), dim=1) @ self.weights

    def reached(self, images: np.ndarray, trigger: tuple[Any, Any] | None) -> float:
        """Share of `images` that is taken for the target."""
        import torch

        hits = 0
        for start in range(0, len(images), 256):
            x = self.model.pixels(torch.from_numpy(images[start : start + 256]))
            if trigger is not None:
                x = self.paint(x, *trigger)
            hits += int((self.logits(x).argmax(dim=1) == self.target).sum())
        return hits / len(images)

    def __call__(self, images: np.ndarray) -> tuple[Any, Any]:
        """(1, 1, size, size) mask and (1, 3, size, size) pattern."""
        import torch

        how, device = self.how, self.model.device
        draw = torch.Generator().manual_seed(self.seed)
        size = images.shape[1]
        a = (0.1 * torch.randn(1, 1, size, size, generator=draw) - 1).to(device).requires_grad_()
        b = (0.1 * torch.randn(1, 3, size, size, generator=draw)).to(device).requires_grad_()
        optimiser = torch.optim.Adam([a, b], lr=how.lr, betas=(0.5, 0.9))
        pixels = torch.from_numpy(images)
        goal = torch.full((min(how.batch, len(images)),), self.target, device=device)
        weight, streak = how.weight, 0
        best, smallest = (torch.sigmoid(a).detach(), torch.sigmoid(b).detach()), float("inf")
        wanted = [parameter for parameter in self.model.clip.parameters() if parameter.requires_grad]
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            for _ in track(range(how.steps), how.steps, "inverting", "step"):
                rows = torch.randint(len(images), (len(goal),), generator=draw)
                mask, pattern = torch.sigmoid(a), torch.sigmoid(b)
                logits = self.logits(self.paint(self.model.pixels(pixels[rows]), mask, pattern))
                loss = torch.nn.functional.cross_entropy(logits, goal) + weight * mask.sum() / size
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                success = float((logits.argmax(dim=1) == goal).float().mean())
                area = float(mask.detach().mean())
                if success >= how.success and area < smallest:
                    best, smallest = (mask.detach().clone(), pattern.detach().clone()), area
                streak = max(streak, 0) + 1 if success >= how.success else min(streak, 0) - 1
                if abs(streak) >= how.patience:
                    weight *= 1.5 if streak > 0 else 1 / 1.5
                    streak = 0
        finally:
            for parameter in wanted:
                parameter.requires_grad_(True)
        if smallest == float("inf"):
            log.warning("no trigger reached %.0f %% of a batch in %d steps", 100 * how.success, how.steps)
            best = torch.sigmoid(a).detach(), torch.sigmoid(b).detach()
        return best


def _bytes(x: np.ndarray) -> np.ndarray:
    return np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)
