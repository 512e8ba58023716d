"""Losses that keep a state from step to step.

A loss of `experiments.training.losses` depends on one batch. RoCLIP and SafeCLIP also depend on earlier batches:
each is a `StatefulLoss`, and every training has its own `LossState`. The state is saved in the checkpoint, so that
a killed training continues to the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from attacks.pairs import Pairs
from experiments.training.losses import AugmentedViews, Features, Loss

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.clip.model import TrainedModel


class LossState(Protocol):
    """The loss of one training, with its state. Epochs and steps count from 0."""

    def on_epoch_start(self, epoch: int, model: TrainedModel, pairs: Pairs, workers: int) -> None:
        """Called before the first step of each epoch; may embed all pairs with the current model."""

    def lr_scale(self, epoch: int) -> float:
        """Factor of the learning rate."""
        ...

    def __call__(self, features: Features, rows: Tensor, step: int) -> Tensor:
        """The loss of the batch that holds the pairs `rows`, (B,); called once a step."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@runtime_checkable
class StatefulLoss(Protocol):
    """The settings of a loss that keeps a state."""

    bias: ClassVar[bool]
    augmented_views: ClassVar[AugmentedViews]

    def check(self, epochs: int) -> None:
        """ValueError for a training of too few epochs."""

    def initial_state(self, n: int, steps_per_epoch: int, seed: int) -> LossState:
        """The loss of a training on `n` pairs that is about to begin."""
        ...


class StatelessLoss:
    """An ordinary loss, as a `LossState` without a state."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def on_epoch_start(self, epoch: int, model: TrainedModel, pairs: Pairs, workers: int) -> None:
        pass

    def lr_scale(self, epoch: int) -> float:
        return 1.0

    def __call__(self, features: Features, rows: Tensor, step: int) -> Tensor:
        return self.loss(features)

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        pass


class Pool:
    """The last `size` unit-length features of earlier steps, (size, d) once it is full; the oldest leave first."""

    def __init__(self, size: int) -> None:
        import torch

        self.size = size
        self.features = torch.empty(0, 0)

    @property
    def full(self) -> bool:
        return len(self.features) == self.size

    def add(self, features: Tensor) -> None:
        import torch

        new = features.detach()
        self.features = (torch.cat([self.features, new]) if len(self.features) else new)[-self.size :].clone()

    def nearest(self, queries: Tensor) -> Tensor:
        """The most similar of the pool to each query, (B, d) -> (B, d), without gradients."""
        return self.features[(queries.detach() @ self.features.T).argmax(dim=1)]


def initial_state(loss: Loss | StatefulLoss, n: int, steps_per_epoch: int, seed: int) -> LossState:
    """The loss of a training on `n` pairs that is about to begin."""
    if isinstance(loss, StatefulLoss):
        return loss.initial_state(n, steps_per_epoch, seed)
    return StatelessLoss(loss)


def pool_size(share: float, n: int) -> int:
    """`share` of `n` pairs, at least one."""
    return max(1, round(share * n))


def require_share(loss: object, name: str) -> None:
    value = getattr(loss, name)
    if not 0 < value <= 1:
        raise ValueError(f"train.loss.{name} must lie in (0, 1], got {value}")
