"""The losses of one training: of every sample in every epoch, and of the steps of the current epoch."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

FLUSH_EVERY = 100  # steps whose sample losses may wait on the device


class LossLog:
    """Losses are kept on the device until someone asks, so that no step waits for a copy.

    of_samples: (epochs, n), NaN where a sample has not been trained on yet.
    of_steps: one tensor for each step of the current epoch.
    """

    def __init__(self, epochs: int, n: int) -> None:
        self.of_samples = torch.full((epochs, n), math.nan)
        self.of_steps: list[Tensor] = []
        self._finite = 0  # how many of `of_steps` are known to be finite
        self._waiting: list[tuple[int, Tensor, Tensor]] = []

    def add(self, epoch: int, rows: Tensor, of_samples: Tensor, of_step: Tensor) -> None:
        """Note one step: (b,) rows, their losses (b,), and the step's own."""
        self._waiting.append((epoch, rows, of_samples))
        self.of_steps.append(of_step)
        if len(self._waiting) >= FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Copy the waiting losses into `of_samples`."""
        for epoch, rows, values in self._waiting:
            self.of_samples[epoch, rows] = values.cpu()
        self._waiting.clear()

    @property
    def unchecked(self) -> int:
        """Steps of this epoch that `first_not_finite` has not seen."""
        return len(self.of_steps) - self._finite

    def first_not_finite(self) -> tuple[int, float] | None:
        """(place within the epoch, loss) of the first step whose loss is not finite, if there is one."""
        for place, loss in enumerate(torch.stack(self.of_steps[self._finite :]).tolist(), start=self._finite):
            if not math.isfinite(loss):
                return place, loss
        self._finite = len(self.of_steps)
        return None

    def end_epoch(self) -> float:
        """Mean loss of the epoch's steps; the next epoch starts without any."""
        mean = float(torch.stack(self.of_steps).mean())
        self.of_steps, self._finite = [], 0
        return mean

    def table(self) -> np.ndarray:
        """(n, epochs), every entry filled; RuntimeError counts those that are missing or not finite."""
        self.flush()
        values: np.ndarray = self.of_samples.T.contiguous().numpy()
        if not np.isfinite(values).all():
            raise RuntimeError(f"{int((~np.isfinite(values)).sum())} training losses are missing or not finite")
        return values
