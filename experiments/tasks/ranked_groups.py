"""Groups of suspects across the parts of a scan, in memory that does not grow with the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from experiments.tasks.group_measures import Group
from experiments.tasks.groups import Grouping
from experiments.tasks.merged_suspects import Listed, MergedSuspects
from experiments.tasks.part_suspects import Facts
from experiments.tasks.ranking_work import Work


@dataclass(frozen=True)
class RankedGroups:
    """samples: the suspects of all parts, and what they are compared with.  groups: of them, the strongest first.

    facts: of the parts that have left suspects.  without: how many parts have not.
    missing: how many of the samples that rank highest could not be grouped, as their part has not left them.
    """

    samples: MergedSuspects
    groups: list[Group]
    facts: Facts
    without: int
    missing: int

    def alarming_rows(self) -> np.ndarray:
        """(m,) rows in all parts of the samples in alarming groups."""
        rows = [group.rows for group in self.groups if group.alarming]
        return self.samples.rows[np.unique(np.concatenate([np.zeros(0, np.int64), *rows]))]


def find_groups(work: Work, n: int, columns: Sequence[str]) -> RankedGroups | None:
    """Groups of the n samples that the table `ranked` of `work` holds; None where no part has left suspects.

    columns: of the parts.  Raises ValueError for suspects of other parts.
    """
    listed = Listed.of(work.files, work.begins)
    if listed is None:
        return None
    work.give("asked", row=listed.row)
    found = work.frame(
        "SELECT a.row, r.score, r.p, r.rank FROM asked a LEFT JOIN ranked r USING (row) ORDER BY a.row"
    )
    if (unscored := found["rank"].isna().to_numpy()).any():
        part = int(listed.part[np.argsort(listed.row)[unscored.argmax()]])
        raise ValueError(f"{listed.files[part]} names samples of {work.files[part].name} that have no score")
    places = {name: np.empty(len(found)) for name in ("score", "p")} | {"rank": np.empty(len(found), np.int64)}
    order = np.argsort(listed.row)
    for name, values in places.items():
        values[order] = found[name].to_numpy()
    with TemporaryDirectory(prefix="suspects.", dir=work.out, ignore_cleanup_errors=True) as folder:
        samples = MergedSuspects(listed, places, columns, Path(folder))  # its open files outlive their names
    grouping, rank = Grouping(**listed.facts.grouping), samples.table["rank"].to_numpy()
    percentile = 1 - (rank - 1) / max(n - 1, 1)
    asked = grouping.number(n)
    suspects = np.flatnonzero(rank <= asked)
    suspects = suspects[np.argsort(rank[suspects], kind="stable")]
    means = {kind: np.asarray(mean) for kind, mean in listed.facts.means.items()}
    near, like = listed.facts.links
    groups = grouping.among(samples, percentile, suspects, (near, like), means) if len(suspects) else []
    without = sum(file is None for file in listed.files)
    return RankedGroups(samples, groups, listed.facts, without, asked - len(suspects))
