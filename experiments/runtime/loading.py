"""Batches that other processes load, in order. A small /dev/shm makes loading slower; a dead process ends it."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from experiments.runtime import stopping

log = logging.getLogger(__name__)


def load_items(dataset: Dataset, order: Sequence[int], workers: int, pin: bool) -> Iterator[Any]:
    """dataset[i], a tuple of tensors and plain values, for i in `order`; prefetched by `workers` processes.

    workers: 0 for none.  pin: whether tensors lie in memory that a GPU copies from faster.
    Raises WorkerDied if a process ends without a result.
    """
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=order,  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=pin,
        collate_fn=_send if workers else _as_it_is,
        worker_init_fn=functools.partial(_begin, os.getpid()) if workers else None,
    )
    warned = False
    try:
        items = iter(loader)
    except OSError as error:
        if died := stopping.no_workers(error):
            raise died from error
        raise
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            if died := stopping.dead_loader(error):
                raise died from error
            raise
        if workers and not warned and any(isinstance(part, np.ndarray) for part in item):
            warned = True
            log.warning(
                "/dev/shm is full: batches go through pipes, which is slower; give it more room (docker run "
                "--shm-size=8g) or load in this process (runtime.workers=0)"
            )
        yield _each(item, torch.from_numpy, np.ndarray)


def _begin(parent: int, worker: int) -> None:
    stopping.as_worker(parent)


def _as_it_is(item: Any) -> Any:
    return item


def _send(item: Any) -> Any:
    """In a worker: put tensors into shared memory, or leave them to the pipe, as arrays, where it has no room.

    Without this, the queue's own thread would do it, and an error there is lost: the main process waits for ever.
    """
    return _each(item, _share, Tensor)


def _share(tensor: Tensor) -> Any:
    try:
        return tensor.share_memory_()
    except RuntimeError:
        return tensor.numpy()


def _each(item: Any, change: Callable[[Any], Any], kind: type) -> Any:
    """The tuple with `change` applied to its parts of one type."""
    parts = [change(part) if isinstance(part, kind) else part for part in item]
    return type(item)(*parts) if hasattr(item, "_fields") else tuple(parts)
