"""The hint behind a refused name: which of the known ones may have been meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest_names(name: str, choices: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Up to `count` of the choices, nearest first, whatever their case; see difflib for `cutoff`."""
    folded = {choice.casefold(): choice for choice in choices}
    return [folded[near] for near in get_close_matches(name.casefold(), folded, count, cutoff)]


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """The end of a message, such as "; did you mean 'caption'?", or nothing if no choice is near."""
    near = nearest_names(name, choices)
    return f"; did you mean {near[0]!r}?" if near else ""
