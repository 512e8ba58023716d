"""The checkpoint of a training: what is in it, when it is written, and whether it can be read."""

from __future__ import annotations

import logging
import pickle
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.runtime.atomic import whole

log = logging.getLogger(__name__)

MOST_TIME_SAVING = 1 / 20  # the largest share of the time that checkpoints may take


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a killed training needs to continue to the same bits; tensors and plain values only.

    Random states are not in it: batches, augmentation and dropout follow from the seed and the step.

    step: the next one, counted from 0 over the whole training.
    model, optimiser: their `state_dict`.
    sample_losses: (epochs begun, n), NaN where a sample has not been trained on yet.
    step_losses: (steps of the current epoch that are done,).
    history: the measures of the finished epochs, as JSON.
    loss_state: the `state_dict` of a loss that keeps one (`experiments.training.stateful_losses`).
    """

    step: int
    model: Mapping[str, Tensor]
    optimiser: Mapping[str, Any]
    sample_losses: Tensor
    step_losses: Tensor
    history: str
    loss_state: Mapping[str, Tensor]

    def save(self, file: Path) -> None:
        """Write the whole file or, when killed, leave the old one."""
        with whole(file) as temporary:
            torch.save(vars(self), temporary)

    @classmethod
    def load(cls, file: Path, device: str) -> Checkpoint:
        """Read a file that `is_sound`, its tensors on `device`."""
        return cls(**torch.load(file, map_location=device, weights_only=True))


class SaveInterval:
    """When to save: every `seconds`, and less often where saving is slow; 0: after every step."""

    def __init__(self, seconds: float) -> None:
        self.seconds = self._pause = seconds
        self._saved = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._saved > self._pause

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measure the saving that happens inside, which decides when the next one is due."""
        start = time.monotonic()
        yield
        self._saved = time.monotonic()
        if self.seconds > 0:
            self._pause = max(self.seconds, (self._saved - start) / MOST_TIME_SAVING)


def is_sound(file: Path) -> bool:
    """Whether there is a checkpoint, complete and unchanged since it was written; any other is set aside."""
    if not file.exists():
        return False
    fault = _fault(file)
    if fault is None:
        return True
    number = sum(1 for _ in file.parent.glob(f"{file.stem}.corrupt-*")) + 1
    place = file.rename(file.with_name(f"{file.stem}.corrupt-{number}"))
    log.warning("train: %s cannot be read (%s): set aside as %s, training starts anew", file, fault, place.name)
    return False


def _fault(file: Path) -> str | None:
    """What is wrong with the file, in a few words."""
    try:
        with zipfile.ZipFile(file) as parts:  # torch does not compare the checksums
            changed = parts.testzip()
        if changed is not None:
            return f"{changed} has another checksum"
        content = torch.load(file, map_location="meta", weights_only=True)
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile, pickle.PickleError) as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or ['cut short'])[0]}"
    names = {field.name for field in fields(Checkpoint)}
    if not isinstance(content, dict) or content.keys() != names:
        return "another version of Lookout has written it"
    return None
