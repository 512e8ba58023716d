"""SafeCLIP: only pairs that look safe teach what belongs together (Yang, Gao, Mirzasoleiman, ICML 2024)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import detect
from attacks.pairs import Pairs
from detect.clip_score import cosine
from experiments.clip.model import TrainedModel
from experiments.training.losses import AugmentedViews, CLIPLoss, Features
from experiments.training.stateful_losses import Pool, pool_size, require_share

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SafeCLIP:
    """Self-supervision within each modality for all pairs at first, CLIP's loss later and for the safe ones alone.

    The paper's section 4 (arXiv 2310.05862), in epochs: `unimodal` of self-supervision, whose positive is the
    nearest to the augmented view in a pool of earlier ones; `slow` of CLIP's loss at `slow_lr_scale` of the
    learning rate; then a mixture of two Gaussians is fitted to the cosine of image and caption
    (`detect.SafeCLIP`); pairs that belong to the upper one with a probability above `threshold` are safe. From then
    on safe pairs are trained with CLIP's loss, risky ones with self-supervision. Before each further epoch pairs
    are ranked anew and the share of safe ones grows by `grow`. Where we differ: a batch holds safe and risky pairs
    together, and its loss is the sum of the two, while the authors' code trains on the one and then on the other;
    one cosine schedule serves all epochs.

    pool: size of each pool, as a share of the pairs.
    """

    bias: ClassVar[bool] = False
    augmented_views: ClassVar[AugmentedViews] = True

    unimodal: int = 5
    slow: int = 1
    slow_lr_scale: float = 0.01
    threshold: float = 0.9
    grow: float = 0.01
    pool: float = 0.02

    def __post_init__(self) -> None:
        for name in ("unimodal", "slow"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.loss.{name} must be at least 1, got {getattr(self, name)}")
        for field in fields(self)[2:]:
            require_share(self, field.name)

    def check(self, epochs: int) -> None:
        if epochs <= self.unimodal + self.slow:
            raise ValueError(
                f"train.epochs must be above train.loss.unimodal + train.loss.slow = {self.unimodal + self.slow}, "
                f"or SafeCLIP never trains on safe pairs, got {epochs}"
            )

    def initial_state(self, n: int, steps_per_epoch: int, seed: int) -> SafeCLIPState:
        return SafeCLIPState(self, n, steps_per_epoch, seed)


class SafeCLIPState:
    """One training's safe pairs, (n,) bool, and its pools of augmented images and captions."""

    def __init__(self, settings: SafeCLIP, n: int, steps_per_epoch: int, seed: int) -> None:
        self.settings, self.steps_per_epoch, self.seed = settings, steps_per_epoch, seed
        self.safe = torch.zeros(n, dtype=torch.bool)
        size = pool_size(settings.pool, n)
        self.images, self.captions = Pool(size), Pool(size)

    def on_epoch_start(self, epoch: int, model: TrainedModel, pairs: Pairs, workers: int) -> None:
        from experiments.clip.embed import embed

        turn = epoch - self.settings.unimodal - self.settings.slow
        if turn < 0:
            return
        model.clip.eval()
        embeddings = embed(model, pairs, workers=workers)
        risk = detect.SafeCLIP(seed=self.seed).score(embeddings)
        self.split(risk, cosine(embeddings), first=turn == 0)
        log.info("safeclip: %d of %d pairs are safe in epoch %d", int(self.safe.sum()), len(pairs), epoch + 1)

    def split(self, risk: np.ndarray, similarity: np.ndarray, *, first: bool) -> None:
        """Choose the safe pairs: at `first` by the threshold, later the least risky, `grow` more than before.

        risk: (n,) 1 - P(safe).  similarity: (n,) cosines, which order pairs of equal risk.
        """
        if first:
            safe = risk < 1 - self.settings.threshold
        else:
            count = int(self.safe.sum()) + round(self.settings.grow * len(risk))
            safe = np.zeros(len(risk), bool)
            safe[np.lexsort((-similarity, risk))[:count]] = True
        self.safe = torch.from_numpy(safe)

    def lr_scale(self, epoch: int) -> float:
        slow = 0 <= epoch - self.settings.unimodal < self.settings.slow
        return self.settings.slow_lr_scale if slow else 1.0

    def __call__(self, features: Features, rows: Tensor, step: int) -> Tensor:
        epoch = step // self.steps_per_epoch
        if epoch < self.settings.unimodal:
            loss = self.own(features)
        elif epoch < self.settings.unimodal + self.settings.slow:
            loss = CLIPLoss()(features)
        else:
            safe = self.safe[rows].to(features.image.device)
            loss = features.image.new_zeros(())
            if safe.sum() > 1:  # a single pair has no others to compare with
                loss = loss + CLIPLoss()(features.each(_only(safe)))
            if (~safe).sum() > 1:
                loss = loss + self.own(features.each(_only(~safe)))
        assert features.second_image is not None
        assert features.second_text is not None
        self.images.add(features.second_image)
        self.captions.add(features.second_text)
        return loss

    def own(self, features: Features) -> Tensor:
        """Mean over the modalities of CE(scale <z_j, nearest to z~_k in the pool>); before it is full: z~_k."""
        both = [
            (features.image, features.second_image, self.images),
            (features.text, features.second_text, self.captions),
        ]
        losses = []
        for own, view, pool in both:
            assert view is not None
            positives = pool.nearest(view) if pool.full else view
            labels = torch.arange(len(own), device=own.device)
            losses.append(F.cross_entropy(features.scale * own @ positives.T, labels))
        return torch.stack(losses).mean()

    def state_dict(self) -> dict[str, Tensor]:
        return {"safe": self.safe, "images": self.images.features, "captions": self.captions.features}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.safe = state["safe"].cpu()
        self.images.features, self.captions.features = state["images"], state["captions"]


def _only(chosen: Tensor) -> Callable[[Tensor], Tensor]:
    """Rows of features, (B, d); the logits' scale, which has no rows, as it is."""
    return lambda part: part[chosen] if part.ndim else part
