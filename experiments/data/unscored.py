"""Samples of the data that a scan does not score: damaged, held out for evaluation, or outside of the subset.

A model that is trained on the data sees them too. So they are counted, named and, by `task=clean`, dropped.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.damage import LIST
from experiments.data.row_data import RowData
from experiments.data.shards import Shards
from experiments.data.tables import Files

SCORED = "scored"
HELD_OUT, NOT_CHOSEN = "held out", "not in the subset"


@dataclass(frozen=True)
class Unscored:
    """ids: (u,) int64, sorted.

    status: why each has no score: the kind of damage, "held out" or "not in the subset".
    lost: kind -> number of samples thought to lie in what could not be read at all; they have no id.
    """

    ids: np.ndarray
    status: list[str]
    lost: dict[str, int]

    def counts(self) -> dict[str, int]:
        """Kind -> number, the most frequent first."""
        return dict(Counter(self.status).most_common())


def find_unscored(data: Any, folder: Path, scored: np.ndarray) -> Unscored:
    """The samples of a data configuration that are not among the ids `scored` (n,).

    folder: of the finished data stage.  Raises RuntimeError if a scored id is none of the data's samples.
    """
    kinds, lost = _damage(folder)
    scored = np.asarray(scored, np.int64)
    members, chosen = _members(data, folder)
    if members is None:
        members = np.union1d(scored, np.array(list(kinds), np.int64))
    stray = np.setdiff1d(scored, members)
    if len(stray):
        raise RuntimeError(
            f"{len(stray):,} scored samples are not among the {len(members):,} of the data, such as id {stray[0]}: "
            "the data have changed since they were read"
        )
    ids = np.setdiff1d(members, scored)
    outside = set() if chosen is None else set(np.setdiff1d(ids, chosen).tolist())
    status = [kinds.get(id) or (NOT_CHOSEN if id in outside else HELD_OUT) for id in ids.tolist()]
    return Unscored(ids, status, lost)


def joined(parts: Sequence[Unscored], shifts: Sequence[int]) -> Unscored:
    """Of a scan in parts: `shifts` are added to the ids of each."""
    lost: Counter[str] = Counter()
    for part in parts:
        lost.update(part.lost)
    ids = [part.ids + shift for part, shift in zip(parts, shifts, strict=True)]
    return Unscored(np.concatenate(ids), [status for part in parts for status in part.status], dict(lost))


def unscored_lines(kinds: Mapping[str, int], lost: Mapping[str, int], fate: str) -> list[str]:
    """Lines of a summary: how many samples have no score, and why; none if all have one."""
    lines = []
    if kinds:
        named = ", ".join(f"{kind} {count:,}" for kind, count in kinds.items())
        lines += ["", f"**{sum(kinds.values()):,} samples have no score, and are {fate}:** {named}."]
    if lost:
        named = ", ".join(f"{kind} {count:,}" for kind, count in lost.items())
        lines += ["", f"Some samples could not be read at all, about: {named}."]
    return lines


def _members(data: Any, folder: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Ids of all samples, and of the subset that was read; None where all of them are known otherwise."""
    if isinstance(data, (Shards, RowData)):
        return data.members(folder)
    if isinstance(data, Files):
        return np.arange(len(data.read_table()[0])), None
    return None, None


def _damage(folder: Path) -> tuple[dict[int, str], dict[str, int]]:
    """Kind of each sample that the reader left out; and kind -> number for what has no id."""
    kinds: dict[int, str] = {}
    lost: Counter[str] = Counter()
    if not (folder / LIST).exists():
        return kinds, {}
    with open(folder / LIST, newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            number, left_out = int(row["id"].lstrip("'")), int(row["left_out"])
            if number < 0:
                lost[row["kind"]] += left_out
            elif left_out:
                kinds.setdefault(number, row["kind"])
    return kinds, dict(lost)
