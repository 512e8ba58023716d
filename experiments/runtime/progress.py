"""Progress bars with time left, on a terminal, and log lines of a training's progress everywhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TypeVar

from tqdm import tqdm

from experiments.runtime import distributed

log = logging.getLogger(__name__)

T = TypeVar("T")


def bar(total: int, label: str, unit: str = "it", initial: int = 0) -> tqdm:
    """A bar to `update(n)` by hand; silent where standard error is no terminal and on ranks above 0."""
    silent = not distributed.is_main() or not sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=f"  {label}",
        unit=unit,
        initial=initial,
        disable=silent,
        leave=False,
        dynamic_ncols=True,
        unit_scale=True,
        mininterval=0.3,
    )


def track(items: Iterable[T], total: int, label: str, unit: str = "it") -> Iterator[T]:
    """Pass `items` through, drawing a bar."""
    with bar(total, label, unit) as shown:
        for item in items:
            yield item
            shown.update(1)


class Pace:
    """Log lines of a training's progress, every `every` steps (0: none), with or without a terminal.

    steps: all there are; begin: those that were done before.
    """

    def __init__(self, steps: int, every: int, begin: int = 0) -> None:
        self.steps, self.every = steps, every
        self._step, self._since = begin, time.monotonic()
        self._waited = 0.0  # for data, seconds since the last line

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """Pass batches through, and add up the time that was spent waiting for them."""
        waiting = iter(batches)
        while True:
            begin = time.monotonic()
            try:
                batch = next(waiting)
            except StopIteration:
                return
            self._waited += time.monotonic() - begin
            yield batch

    def due(self, step: int) -> bool:
        """Whether a line is due once `step` steps are done."""
        return bool(self.every) and step % self.every == 0 and distributed.is_main()

    def log(self, step: int, batch_size: int, measures: Mapping[str, str]) -> None:
        """One line: the measures, samples/s, the share of the time spent waiting for data, and the time left."""
        now = time.monotonic()
        seconds, done = max(now - self._since, 1e-9), max(step - self._step, 1)
        left = timedelta(seconds=round((self.steps - step) * seconds / done))
        said = "  ".join(f"{name} {value}" for name, value in measures.items())
        log.info(
            "train: step %d of %d  %s  %s samples/s  data %.0f %%  left %s",
            step,
            self.steps,
            said,
            f"{done * batch_size / seconds:,.0f}",
            100 * self._waited / seconds,
            left,
        )
        self._step, self._since, self._waited = step, now, 0.0
