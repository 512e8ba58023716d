"""RoCLIP: images learn from the nearest of other samples' captions (Yang, Gao, Mirzasoleiman, NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attacks.pairs import Pairs
from experiments.clip.model import TrainedModel
from experiments.training.losses import AugmentedViews, CLIPLoss, Features
from experiments.training.stateful_losses import Pool, pool_size, require_share


@dataclass(frozen=True)
class RoCLIP:
    """CLIP's loss, but in every `every`-th turn with the caption in a pool that is most similar to the image.

    The paper's section 4 (arXiv 2303.06854, version 2): the caption nearest to a poisoned image seldom names the
    target, so the model does not learn the planted caption. The pool holds the latest captions, as they were
    embedded when their batch was trained on; images and captions are augmented in every epoch, as for CleanCLIP
    (`experiments.training.augmentations`).
    Where we differ: the pool fills from the first step on, and until it is full every step is CLIP's.

    every: the last turn of every `every` uses captions from the pool.
    turn: epochs of a turn, 1 in the paper; a fraction alternates more often.
    pool: size of the pool, as a share of the pairs.
    """

    bias: ClassVar[bool] = False
    augmented_views: ClassVar[AugmentedViews] = "only"

    every: int = 2
    turn: float = 1.0
    pool: float = 0.02

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"train.loss.every must be at least 1, got {self.every}")
        if not self.turn > 0:
            raise ValueError(f"train.loss.turn must be above 0, got {self.turn}")
        require_share(self, "pool")

    def check(self, epochs: int) -> None:
        if epochs < self.every * self.turn:
            raise ValueError(
                f"train.epochs must be at least train.loss.every x train.loss.turn = {self.every * self.turn:g}, "
                f"or RoCLIP never matches, got {epochs}"
            )

    def initial_state(self, n: int, steps_per_epoch: int, seed: int) -> RoCLIPState:
        return RoCLIPState(self, pool_size(self.pool, n), steps_per_epoch)


class RoCLIPState:
    """One training's pool of captions."""

    def __init__(self, settings: RoCLIP, size: int, steps_per_epoch: int) -> None:
        self.settings, self.steps_per_epoch = settings, steps_per_epoch
        self.captions = Pool(size)

    def on_epoch_start(self, epoch: int, model: TrainedModel, pairs: Pairs, workers: int) -> None:
        pass

    def lr_scale(self, epoch: int) -> float:
        return 1.0

    def matches(self, step: int) -> bool:
        """Whether the step belongs to a turn that matches with the pool."""
        turn = int(step / (self.settings.turn * self.steps_per_epoch))
        return (turn + 1) % self.settings.every == 0

    def __call__(self, features: Features, rows: Tensor, step: int) -> Tensor:
        paired = features
        if self.matches(step) and self.captions.full:
            paired = replace(features, text=self.captions.nearest(features.image))
        self.captions.add(features.text)
        return CLIPLoss()(paired)

    def state_dict(self) -> dict[str, Tensor]:
        return {"captions": self.captions.features}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.captions.features = torch.as_tensor(state["captions"])
