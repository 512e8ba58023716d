"""Damage of whole shards and of many samples: in proportion to a subset, and what to do about it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from experiments.data.damage import DamageReport, Issue, TooMuchDamage

_HINTS = {
    "unsorted tar": "The files of a sample must follow each other. To sort a tar: mkdir new && tar -xf OLD.tar"
    " -C new && tar --sort=name -cf NEW.tar -C new .",
    "keys with dots?": "A sample's key ends at the first dot of the file's name, as in WebDataset: rename cat.7.jpg"
    " to cat_7.jpg, or name the ending in data.image_keys.",
}
"""Kind of damage, or words of its details -> advice for a run that it stops."""


def settle(report: DamageReport, folder: Path, max_damaged: float) -> None:
    """Write the report; above `max_damaged` raise TooMuchDamage, with advice."""
    try:
        report.finalise(folder, max_damaged)
    except TooMuchDamage as error:
        hints = [hint for mark, hint in _HINTS.items() if _is_frequent(mark, report)]
        raise TooMuchDamage(" ".join([str(error), *hints])) from None


def within(issues: list[Issue], chosen: np.ndarray, samples: np.ndarray) -> tuple[int, list[Issue]]:
    """The chosen samples' issues and those of whole shards in proportion; and the number of samples."""
    share = len(chosen) / max(int(samples.sum()), 1)
    of_shards = [
        dataclasses.replace(issue, samples=max(min(1, issue.samples), round(issue.samples * share)))
        for issue in issues
        if issue.id < 0
    ]
    inside = set(np.intersect1d(chosen, [issue.id for issue in issues]).tolist())
    of_samples = [issue for issue in issues if issue.id in inside]
    lost = sum(issue.samples for issue in of_shards if not issue.note)
    lost += sum(issue.samples - 1 for issue in of_samples if not issue.note)  # several under one key
    return len(chosen) + lost, of_shards + of_samples


def _is_frequent(mark: str, report: DamageReport) -> bool:
    """Whether a tenth of the damage is of that kind or says so."""
    bad = (issue for issue in report.issues if not issue.note)
    return 10 * sum(f.samples for f in bad if f.kind == mark or mark in f.detail) >= report.bad
