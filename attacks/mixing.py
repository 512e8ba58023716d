"""Mixing of 64-bit numbers, for random numbers that depend on a sample's id alone, not on its row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GAMMA = 0x9E3779B97F4A7C15
"""The odd number nearest to 2^64 divided by the golden ratio, by which SplitMix64 spaces its states."""

SPLITMIX64 = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
"""(shift, multiplier) of SplitMix64's rounds, which end with a shift of 31 (Steele, Lea, Flood 2014)."""


def mixed(state: np.ndarray, rounds: Sequence[tuple[int, int]] = SPLITMIX64, last: int = 31) -> np.ndarray:
    """(n,) uint64 -> (n,) uint64: a bijection whose every output bit depends on every input bit."""
    with np.errstate(over="ignore"):
        for shift, multiplier in rounds:
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(multiplier)
    return state ^ (state >> np.uint64(last))
