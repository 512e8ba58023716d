"""`task=invert`: what would have to be painted over an image to send it to a caption?

A caption that has a trigger needs a small mask; for any other one much of the image must be painted over
(`experiments.clip.inversion`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.clip.inversion import (
    InversionConfig,
    InvertedTrigger,
    caption_weights,
    images_against,
    invert,
    to_bytes,
)
from experiments.pipeline.experiment import Experiment
from experiments.pipeline.runner import Runner
from experiments.pipeline.values import with_targets
from experiments.runtime.progress import track

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inversion:
    """An inverted trigger.

    examples: (b, size, size, 3) uint8 clean images, and `painted` the same with the trigger.
    """

    target: str
    trigger: InvertedTrigger
    examples: np.ndarray
    painted: np.ndarray

    def write(self, folder: Path) -> tuple[str, Sequence[Mapping[str, Any]]]:
        """trigger.png, trigger.npz and summary.md; what to print, and the row of results.csv."""
        found = self.trigger
        np.savez(folder / "trigger.npz", mask=found.mask, pattern=found.pattern)
        self._picture(folder / "trigger.png")
        row: dict[str, Any] = {
            "target": self.target,
            "area": found.area,
            "pixels": float(found.mask.sum()),
            "success": found.success,
            "before": found.before,
            "held_out": found.held_out,
        }
        side = len(found.mask)
        text = (
            f"# Trigger for {self.target!r}\n\n"
            f"A mask of {row['pixels']:.0f} of {side * side} pixels ({100 * found.area:.1f} %) sends "
            f"{100 * found.success:.1f} % of {found.held_out} held-out images there "
            f"({100 * found.before:.1f} % without it).\n\ntrigger.png: mask, pattern, both, and images without and "
            "with it; trigger.npz: the arrays.\n"
        )
        (folder / "summary.md").write_text(text, encoding="utf-8")
        (folder / "trigger.json").write_text(json.dumps(row, indent=1))
        return text, [row]

    def _picture(self, file: Path) -> None:
        from PIL import Image

        mask = np.repeat(self.trigger.mask[:, :, None], 3, axis=2)
        top = [to_bytes(mask), to_bytes(self.trigger.pattern), to_bytes(mask * self.trigger.pattern)]
        blank = np.full_like(top[0], 255)
        width = max(len(top), len(self.examples))
        lines = [[*top, *[blank] * (width - len(top))], list(self.examples), list(self.painted)]
        scale = max(1, 96 // len(mask))
        rows = []
        for line in lines:
            tiles = [
                np.pad(tile.repeat(scale, 0).repeat(scale, 1), ((3, 3), (3, 3), (0, 0)), constant_values=255)
                for tile in line
            ]
            rows.append(np.concatenate(tiles, axis=1))
        Image.fromarray(np.concatenate(rows, axis=0)).save(file)


@dataclass(frozen=True)
class Invert(InversionConfig):
    """How a trigger is inverted; the other settings are those of `experiments.clip.inversion.InversionConfig`.

    target: a caption, such as a group's; None: the zero-shot prompts of `target`, the attacks' target class.
    others: captions that compete with the target where the data know no classes.
    """

    target: str | None = None
    others: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.others < 1:
            raise ValueError(f"task.others must be at least 1, got {self.others}")

    def check(self, experiment: Experiment) -> None:
        """Nothing can be refused before the data are there."""

    def run(self, runner: Runner) -> Inversion:
        weights, target = self._classifier(runner)  # (d, classes)
        used, tested = self._images(runner)
        found = invert(
            runner.value("model"), weights, target, used, tested, self, runner.experiment.seed, track=track
        )
        if not found.reached:
            log.warning("no trigger reached %.0f %% of a batch in %d steps", 100 * self.success, self.steps)
        log.info("trigger: %.1f %% of the image, success %.3f", 100 * found.area, found.success)
        chosen = tested[:8]
        return Inversion(self.target or runner.experiment.target, found, chosen, found.paint(chosen))

    @staticmethod
    def _test(runner: Runner) -> Any:
        return with_targets(runner.value("test"), runner.experiment.targets)

    def _classifier(self, runner: Runner) -> tuple[Any, int]:
        """Unit-length text embeddings of what an image may be taken for, (d, classes), and the target's place."""
        import torch

        from experiments.clip.zero_shot import class_weights

        model, test = runner.value("model"), self._test(runner)
        known = len(test.classes) > 1 and len(test) > 0
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
            weights = caption_weights(model, sorted({pairs.captions[row] for row in rows} - {self.target}))
        return torch.cat([weights, caption_weights(model, [self.target])], dim=1), weights.shape[1]

    def _images(self, runner: Runner) -> tuple[np.ndarray, np.ndarray]:
        """Images to optimise on and others to test on."""
        test = self._test(runner)
        name = runner.experiment.target if self.target is None else ""
        return images_against(test, runner.value("pairs"), name, self.images, runner.experiment.seed)
