"""Progress bars with time left, on a terminal; nothing but log lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from experiments.runtime import distributed

T = TypeVar("T")


def bar(total: int, label: str, unit: str = "it", initial: int = 0) -> tqdm:
    """A bar to `update(n)` by hand; silent where standard error is no terminal and on ranks above 0."""
    silent = not distributed.is_main() or not sys.stderr.isatty()
    return tqdm(
        total=total, desc=f"  {label}", unit=unit, initial=initial, disable=silent, leave=False,
        dynamic_ncols=True, unit_scale=True, mininterval=0.3,
    )  # fmt: skip


def track(items: Iterable[T], total: int, label: str, unit: str = "it") -> Iterator[T]:
    """Pass `items` through, drawing a bar."""
    with bar(total, label, unit) as shown:
        for item in items:
            yield item
            shown.update(1)
