"""How long a stage has taken, over all runs that it took."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from experiments.runtime.atomic import write_whole

Result = TypeVar("Result")

SECONDS = ".seconds"  # of earlier runs, in a stage's `.partial` folder


def timed(make: Callable[[Path], Result], partial: Path) -> Result:
    """make(partial); the time it took is added to what was noted there."""
    earlier, start = read_seconds(partial), time.perf_counter()
    try:
        return make(partial)
    finally:
        with suppress(OSError):  # the disk is full; the time is then that of the last run
            write_whole(partial / SECONDS, f"{earlier + time.perf_counter() - start:.3f}")


def read_seconds(partial: Path) -> float:
    """What earlier runs have taken; 0 where that cannot be read."""
    try:
        seconds = float((partial / SECONDS).read_text())
    except (OSError, ValueError):
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
