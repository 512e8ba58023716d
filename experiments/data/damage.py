"""Damaged samples: counted by kind, listed in a file, skipped; too many of them stop the run.

damage.csv    id, source, kind, detail: one line for each sample that was left out, and for each note
damage.json   counts by kind, the number of samples read, and the share left out
"""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from experiments.runtime.safe_text import csv_cell, printable

log = logging.getLogger(__name__)

LIST, SUMMARY = "damage.csv", "damage.json"


class DecodeError(Exception):
    """A sample cannot be used: what kind of damage, and its details."""

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind, self.detail = kind, detail

    def __str__(self) -> str:
        return printable(f"{self.kind}: {self.detail}" if self.detail else self.kind)


class TooMuchDamage(ValueError):
    """More than `max_damaged` of a data set's samples cannot be used."""


@dataclass(frozen=True)
class Issue:
    """One damaged sample (or, with `note`, something worth counting in a sample that is used).

    For a broken shard, `id` is -1 and `samples` the number of samples that are thought to be lost with it.
    """

    id: int
    source: str
    kind: str
    detail: str = ""
    note: bool = False
    samples: int = 1


@dataclass
class DamageReport:
    """Findings of a whole data set; `total` counts the samples looked at, good, bad and lost.

    decoded: whether every image was tried, or only the lists of the shards' files were read.
    """

    total: int = 0
    issues: list[Issue] = field(default_factory=list)
    decoded: bool = True

    def add(self, total: int, issues: Iterable[Issue]) -> None:
        self.total += total
        self.issues.extend(issues)

    def counts(self, note: bool = False) -> dict[str, int]:
        """Kind -> number, most frequent first."""
        counts: Counter[str] = Counter()
        for issue in self.issues:
            if issue.note == note:
                counts[issue.kind] += issue.samples
        return dict(counts.most_common())

    @property
    def bad(self) -> int:
        return sum(issue.samples for issue in self.issues if not issue.note)

    @property
    def share(self) -> float:
        return self.bad / max(self.total, 1)

    def __str__(self) -> str:
        if not self.bad:
            sound = f"all {self.total:,} samples are sound"
            return sound if self.decoded else f"{sound} as far as the shards show; no image was decoded"
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.counts().items())
        return f"{self.bad:,} of {self.total:,} samples left out ({self.share:.2%}): {kinds}"

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        rows = sorted(self.issues, key=lambda issue: (issue.note, issue.id, issue.source, issue.kind))
        with open(folder / LIST, "w", newline="", encoding="utf-8", errors="replace") as stream:
            writer = csv.writer(stream)
            writer.writerow(["id", "source", "kind", "detail", "left_out"])
            for row in rows:
                texts = map(csv_cell, (row.source, row.kind, row.detail))
                writer.writerow([row.id, *texts, 0 if row.note else row.samples])
        summary = {
            "samples": self.total,
            "left_out": self.bad,
            "share": round(self.share, 6),
            "damage": self.counts(),
            "notes": self.counts(note=True),
        }
        (folder / SUMMARY).write_text(json.dumps(summary, indent=1))

    def finalise(self, folder: Path, max_damaged: float) -> None:
        """Write the report, log one line, and raise TooMuchDamage if the share left out exceeds `max_damaged`."""
        self.write(folder)
        log.info("%s", self)
        if self.share > max_damaged:
            raise TooMuchDamage(
                f"{self}. That is more than data.max_damaged={max_damaged:g} allows. All are listed in "
                f"{folder / LIST}; repair them, or set data.max_damaged={min(1.0, self.share * 1.05):.3f}. "
                "What was read is kept; the next run continues from there."
            )
