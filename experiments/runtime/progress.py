"""Progress bars with time left, on a terminal, and log lines of a training's progress everywhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from tqdm import tqdm

from experiments.runtime import distributed

log = logging.getLogger(__name__)

T = TypeVar("T")


def bar(total: int, label: str, unit: str = "it", *, done: int = 0, items: Iterable[Any] | None = None) -> tqdm:
    """tqdm's bar: iterate over it if `items` are given, else `update(n)` it by hand.

    It is silent where standard error is no terminal, and on ranks above 0. `done` of `total` were done before.
    """
    return tqdm(
        items,
        total=total,
        desc=f"  {label}",
        unit=unit,
        initial=done,
        disable=not distributed.is_main() or not sys.stderr.isatty(),
        leave=False,
        dynamic_ncols=True,
        unit_scale=True,
        mininterval=0.3,
    )


def track(items: Iterable[T], total: int, label: str, unit: str = "it") -> Iterable[T]:
    """Pass `items` through, drawing a bar."""
    return bar(total, label, unit, items=items)


class StepProgress:
    """The progress of a training: a bar on a terminal, and a log line every `log_every` steps (0: none).

    steps: how many there are; done: how many were done before.
    """

    def __init__(self, steps: int, log_every: int, done: int = 0) -> None:
        self.steps, self.log_every = steps, log_every
        self._bar = bar(steps, "train", "step", done=done)
        self._step, self._since = done, time.monotonic()  # of the last line
        self._waited = 0.0  # seconds spent waiting for data since the last line

    def __enter__(self) -> StepProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass batches through, and add up the time that was spent waiting for them."""
        waiting = iter(batches)
        while True:
            start = time.monotonic()
            try:
                batch = next(waiting)
            except StopIteration:
                return
            self._waited += time.monotonic() - start
            yield batch

    def update(self) -> None:
        """One more step is done."""
        self._bar.update(1)

    def due(self, step: int) -> bool:
        """Whether a line is due once `step` steps are done."""
        return bool(self.log_every) and step % self.log_every == 0 and distributed.is_main()

    def log(self, step: int, batch_size: int, measures: Mapping[str, str]) -> None:
        """One line: the measures, samples/s, the share of the time spent waiting for data, and the time left."""
        now = time.monotonic()
        seconds, done = max(now - self._since, 1e-9), max(step - self._step, 1)
        left = timedelta(seconds=round((self.steps - step) * seconds / done))
        log.info(
            "train: step %d of %d  %s  %s samples/s  data %.0f %%  left %s",
            step,
            self.steps,
            "  ".join(f"{name} {value}" for name, value in measures.items()),
            f"{done * batch_size / seconds:,.0f}",
            100 * self._waited / seconds,
            left,
        )
        self._step, self._since, self._waited = step, now, 0.0
