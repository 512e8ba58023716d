"""The device and the processes that computations use; they are in no key."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from experiments.data.pairs import ArrayPairs
from experiments.runtime import distributed

if TYPE_CHECKING:
    from experiments.data.jpeg_batches import JPEGDecoder


@dataclass
class Resources:
    """Where and how to compute; in no key.

    requested: the device as it stands in the configuration.  threads: torch's; None leaves their number to torch.
    workers: processes that draw, decode and load.  on_epoch: is given each epoch's measures.
    """

    requested: str
    threads: int | None
    workers: int
    checkpoint_seconds: float
    log_every: int
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None

    @classmethod
    def of(cls, config: DictConfig) -> Resources:
        """From `runtime`. Under torchrun it joins the process group."""
        workers = os.cpu_count() or 1 if config.workers is None else int(config.workers)
        made = cls(config.device, config.threads, workers, config.checkpoint_seconds, config.log_every)
        return made if distributed.world_size() == 1 else made.ready()

    @functools.cached_property
    def device(self) -> str:
        """Torch's device. Asked for the first time, it imports torch, which takes seconds, and sets its threads."""
        device = distributed.device(self.requested)
        distributed.start(device, self.threads)
        return device

    def ready(self) -> Resources:
        """The same, once torch has its threads and the process group: before a stage computes."""
        _ = self.device
        return self

    def loaders(self, pairs: Any) -> int:
        """Processes that load batches: none for arrays, which are read faster than they are passed around."""
        return 0 if isinstance(pairs, ArrayPairs) else self.workers

    def training(self, pairs: Any) -> dict[str, Any]:
        """The arguments of the trainer."""
        return {
            "device": self.device,
            "workers": self.loaders(pairs),
            "on_epoch": self.on_epoch,
            "checkpoint_seconds": self.checkpoint_seconds,
            "log_every": self.log_every,
        }

    def decoder(self, name: str, pairs: Any) -> JPEGDecoder | None:
        """The decoder for images that are embedded; None for Pillow, and for arrays, which are decoded already."""
        from experiments.data.jpeg_batches import JPEGDecoder

        return JPEGDecoder(self.device) if name == "device" and not isinstance(pairs, ArrayPairs) else None

    def loading(self, pairs: Any) -> dict[str, Any]:
        """How `embed` loads batches: in threads where the pairs have a decoder of their own, else in processes."""
        return {"workers": self.loaders(pairs), "threads": getattr(pairs, "decoder", None) is not None}
