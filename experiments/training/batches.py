"""Which rows make up each training step, augmented and tokenised.

A step depends on (seed, step) alone. So a killed run can resume in the middle of an epoch, and any number of
processes sees the same global batches with the same augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from attacks.pairs import Pairs
from experiments.runtime import distributed
from experiments.runtime.loading import load_items
from experiments.training.crops import ResizedCrop, Shift
from experiments.training.losses import AugmentedViews

ORDER, AUGMENT, VIEWS = 1, 2, 3  # which stream of random numbers


@dataclass(frozen=True)
class Schedule:
    """The order of `n` rows over all epochs, in global batches of `batch_size`; the last of an epoch wraps."""

    n: int
    batch_size: int
    epochs: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.n // self.batch_size)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, ORDER, epoch]).permutation(self.n)

    def rows(self, step: int, order: np.ndarray) -> tuple[np.ndarray, int]:
        """Rows of the step, (batch_size,), and how many of them are new in this epoch."""
        start = (step % self.steps_per_epoch) * self.batch_size
        rows = np.take(order, np.arange(start, start + self.batch_size), mode="wrap")
        return rows, min(self.batch_size, self.n - start)


class Batch(NamedTuple):
    """One step: (B,) rows of the global batch, how many are new in this epoch, and this process's share of it.

    images: (b, s, s, 3) uint8, augmented.  tokens: (b, context).  second_images, second_tokens: another
    augmented view of the same pairs (`experiments.training.augmentations`), for losses that compare two.
    """

    rows: Tensor
    new: int
    images: Tensor
    tokens: Tensor | None = None
    second_images: Tensor | None = None
    second_tokens: Tensor | None = None


class Steps(Dataset):
    """step -> Batch.

    tokenise: texts -> (b, context), so that it happens where the images are decoded; None leaves tokens out.
    augmented_views: add augmented versions of images and texts; "only": put them in place of the others.
    """

    def __init__(
        self,
        pairs: Pairs,
        schedule: Schedule,
        augment: Shift | ResizedCrop | None,
        tokenise: Callable[[Sequence[str]], Tensor] | None = None,
        augmented_views: AugmentedViews = False,
    ) -> None:
        self.pairs, self.schedule, self.augment = pairs, schedule, augment
        self.tokenise, self.augmented_views = tokenise, augmented_views
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.schedule.steps

    def __getitem__(self, step: int) -> Batch:
        epoch = step // self.schedule.steps_per_epoch
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self.schedule.order(epoch)
        rows, new = self.schedule.rows(step, self._order)
        mine = own_rows()
        clean = self.pairs.images(rows[mine])
        images = self._augmented(clean, [AUGMENT, step], len(rows), mine)
        batch = Batch(torch.from_numpy(rows), new, torch.from_numpy(images))
        if self.tokenise is None:
            return batch
        texts = [self.pairs.captions[int(row)] for row in rows[mine]]
        batch = batch._replace(tokens=self.tokenise(texts))
        if self.augmented_views:
            from experiments.training.augmentations import augment_images, augment_texts

            seeds = np.random.default_rng([self.schedule.seed, VIEWS, step]).integers(0, 2**63 - 1, len(rows))[mine]
            # The second view has a crop of its own, as the first one has.
            cropped = self._augmented(clean, [VIEWS, step, 1], len(rows), mine)
            images = torch.from_numpy(augment_images(cropped, seeds))
            tokens = self.tokenise(augment_texts(texts, seeds))
            if self.augmented_views == "only":
                return batch._replace(images=images, tokens=tokens)
            batch = batch._replace(second_images=images, second_tokens=tokens)
        return batch

    def _augmented(self, images: np.ndarray, stream: Sequence[int], count: int, mine: slice) -> np.ndarray:
        """Drawn for the whole batch, then applied to this process's share."""
        if self.augment is None:
            return images
        rng = np.random.default_rng([self.schedule.seed, *stream])
        return self.augment.apply(images, self.augment.draw(rng, count)[mine])


def token_table(tokenise: Callable[[Sequence[str]], Tensor], captions: Sequence[str]) -> Tensor:
    """n captions -> (n, context) tokens; a caption that occurs often is cut up once."""
    place = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    return tokenise(list(place))[torch.tensor([place[caption] for caption in captions])]


def own_rows() -> slice:
    """Which rows of a global batch belong to this process."""
    return slice(distributed.rank(), None, distributed.world_size())


def load(steps: Steps, start: int, workers: int, pin: bool) -> Iterator[Batch]:
    """All steps from `start` on, prefetched by `workers` processes (0: in this one)."""
    return load_items(steps, range(start, len(steps)), workers, pin)
