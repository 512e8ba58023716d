"""PAR: move away from what the poisoned model knew, and keep what belongs together (Singh, Croce, Hein, 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attacks.pairs import Pairs
from experiments.clip.model import TrainedModel
from experiments.training.losses import AugmentedViews, CLIPLoss, Features


@dataclass(frozen=True)
class PAR:
    """Perturb and Recover (arXiv 2412.00727): L_CLIP - 1/2 (D_image + D_text), for fine-tuning a poisoned model.

    D is the mean squared distance between the unit-length features of the model and those of the model that the
    fine-tuning began with. It counts as long as it is at most `threshold`, 2.15 in the authors' code; beyond it, it
    is 0 and has no gradient. Where we differ: the features at the beginning are those of images without
    augmentation, in evaluation mode, computed once and kept as float16.
    """

    bias: ClassVar[bool] = False
    augmented_views: ClassVar[AugmentedViews] = False

    threshold: float = 2.15

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 4:
            raise ValueError(f"train.loss.threshold must lie in (0, 4], got {self.threshold}")

    def check(self, epochs: int) -> None:
        """Accepts any number of epochs."""

    def initial_state(self, n: int, steps_per_epoch: int, seed: int) -> PARState:
        return PARState(self)


class PARState:
    """The features (n, d) of all images and captions when the training began, of unit length."""

    def __init__(self, settings: PAR) -> None:
        self.settings = settings
        self.image = self.text = torch.empty(0, 0, dtype=torch.float16)

    def on_epoch_start(self, epoch: int, model: TrainedModel, pairs: Pairs, workers: int) -> None:
        from experiments.clip.embed import embed

        if epoch > 0:
            return
        model.clip.eval()
        before = embed(model, pairs, workers=workers)
        self.image, self.text = (
            torch.nn.functional.normalize(torch.from_numpy(part), dim=1).half()
            for part in (before.image, before.text)
        )

    def lr_scale(self, epoch: int) -> float:
        return 1.0

    def __call__(self, features: Features, rows: Tensor, step: int) -> Tensor:
        image, text = (part[rows.cpu()].to(features.image) for part in (self.image, self.text))
        away = self._distance(features.image, image) + self._distance(features.text, text)
        return CLIPLoss()(features) - away / 2

    def _distance(self, now: Tensor, before: Tensor) -> Tensor:
        distance = (now - before).square().sum(dim=1).mean()
        return torch.where(distance > self.settings.threshold, distance.new_zeros(()), distance)

    def state_dict(self) -> dict[str, Tensor]:
        return {"image": self.image, "text": self.text}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.image, self.text = state["image"].cpu(), state["text"].cpu()
