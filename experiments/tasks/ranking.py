"""The last step of a scan in parts, out of core by DuckDB: join, rank, threshold, top suspects, domains.

Memory is bounded whatever the number of samples; what does not fit is in files beside the results. Scores, ranks
and p-values are those that `task=scan` computes in memory (`detect.metrics`, `detect.conformal`): ties of a column
share their mean rank, ties of the final score keep the order of the files. Each step is a transaction, so that a
killed ranking goes on with the step it was in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.unscored import SCORED
from experiments.tasks.decisions import Decisions
from experiments.tasks.domains import DEVIATIONS, FEW, SHOWN
from experiments.tasks.ranked_changes import Changes, changes_of
from experiments.tasks.ranked_groups import RankedGroups, find_groups
from experiments.tasks.ranking_work import Work, quoted, text, working
from experiments.tasks.thresholds import Threshold

NAMES = ("id", "key", "shard", "file", "row")
"""Columns that say which sample a row is, as far as the parts have them."""
DOMAIN = "lower(split_part(split_part(split_part(coalesce(url, ''), '/', 3), '@', -1), ':', 1))"


@dataclass(frozen=True)
class Ranked:
    """n: samples ranked.  removed: of these, by threshold, groups and decisions.  unscored: kind -> samples without
    a score.

    domains: name, samples, removed samples, lift (how often removed, against all samples), the most removed first.
    addresses: samples with an address, and number of their domains.  unusual: domains of which clearly more samples
    are removed than expected (`experiments.tasks.domains`): name, samples, removed, lift, examples.
    histogram: of the score, for the page.  groups: of the suspects; None where the parts have left none.
    changes: what decisions and groups change.
    repeated: whether different samples have the same id, as the shards of some parts are named alike.
    """

    n: int
    removed: int
    unscored: dict[str, int]
    domains: list[tuple[str, int, int, float]]
    addresses: tuple[int, int]
    unusual: list[tuple[str, int, int, float, list[str]]]
    histogram: dict[str, Any]
    groups: RankedGroups | None
    changes: Changes
    repeated: bool


@dataclass(frozen=True)
class Ranking:
    """What to rank, by what.

    files: Parquet files of a scan's parts, in order.  columns: their names.
    by: columns to rank by; of several, the score is the mean of their rank shares.
    remove: which samples count as suspects.  top: suspects written, of all columns.
    memory_mb: bound on DuckDB's memory.  threads: None: the number of cores.
    decisions: of a person, which win over the threshold and the groups.
    remove_groups: beside a threshold, alarming groups are removed too, wherever their members rank.
    """

    files: Sequence[Path]
    columns: Sequence[str]
    by: Sequence[str]
    remove: Threshold
    top: int = 2000
    memory_mb: int = 2000
    threads: int | None = None
    decisions: Decisions | None = None
    remove_groups: bool = True

    def __post_init__(self) -> None:
        if self.remove.reference is not None:
            raise ValueError("a ranking out of core takes no reference: remove by share, count or false_positives")
        for name, least in (("top", 1), ("memory_mb", 500)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def write(self, out: Path) -> Ranked:
        """scores.parquet, removed.parquet, kept.parquet, suspects.parquet, in `out`; if there are ids that differ,
        kept.txt; if there are urls, domains.parquet.

        Raises ImportError without DuckDB, ValueError for scores that cannot be ranked, for a sample that is in two
        parts, and for decisions and suspects of other data.
        """
        identity = {"by": list(self.by), "columns": list(self.columns)}
        with working(out, self.files, identity, self.memory_mb, self.threads) as work:
            repeated = "id" in self.columns and _repeated(work, self.columns)
            n = work.table("parts", self._parts())
            if not n:
                raise ValueError("there is no scored sample to rank")
            last = "parts"
            if len(self.by) > 1:
                for position, column in enumerate(self.by):
                    name = f"ranks_{position}"
                    work.table(name, self._ranks(last, position, column, n), last)
                    last = name
            work.table("ranked", self._ranked(last), last)
            most = self._removed(work, n)
            groups = find_groups(work, n, self.columns)
            taken = groups.alarming_rows() if groups and self.remove_groups and self.remove.given else ()
            changes = changes_of(work, self.decisions, self.columns, np.asarray(taken, np.int64), most)
            removed = self._write_lists(work, n, most, changes, repeated)
            domains, addresses, unusual = self._domains(work, n, removed)
            counts = (
                f"SELECT status, count(*) FROM {work.source} WHERE status <> '{SCORED}' GROUP BY 1 ORDER BY 2 DESC"
            )
            unscored = dict(work.rows(counts)) if "status" in self.columns else {}
            histogram = _histogram(work, n)
        return Ranked(n, removed, unscored, domains, addresses, unusual, histogram, groups, changes, repeated)

    def _write_lists(self, work: Work, n: int, most: int, changes: Changes, repeated: bool) -> int:
        """Write the samples with what becomes of them; how many are removed."""
        work.give("changes", row=changes.rows, gone=changes.gone)
        digest = hashlib.sha256(f"{most} {changes.rows.tolist()} {changes.gone.tolist()}".encode()).hexdigest()[:16]
        fates = f"fates_{digest}"  # a killed ranking with another threshold has left another one
        gone = f"coalesce(c.gone, r.rank <= {most})"
        work.table(
            fates,
            f"SELECT r.row, r.score, r.p, r.rank, {gone} AS gone FROM ranked r LEFT JOIN changes c USING (row) "
            "ORDER BY r.row",
            ordered=True,
        )
        removed = int(work.rows(f"SELECT count(*) FROM {fates} WHERE gone")[0][0])
        if removed >= n:
            raise ValueError(f"threshold, groups and decisions would remove all of {n:,} samples, and leave none")
        names = [quoted(name) for name in NAMES if name in self.columns]
        inner = [*names, "s.filename AS part", "1"]
        scored = f"(SELECT {', '.join(inner)} FROM {work.source} s {self._only_scored()}) a"
        own = [f"a.{name}" for name in names]
        both = f"FROM {scored} POSITIONAL JOIN {fates} b"
        work.file("scores.parquet", f"SELECT {', '.join([*own, 'b.score, b.p, b.rank'])} {both}", ordered=True)
        wanted = [*own, *(["a.part"] if repeated else [])] or ["b.row"]
        work.file("kept.parquet", f"SELECT {', '.join(wanted)} {both} WHERE NOT b.gone", ordered=True)
        (work.out / "kept.txt").unlink(missing_ok=True)
        if "id" in self.columns and not repeated:
            kept = f"SELECT id FROM read_parquet({text(work.out / 'kept.parquet')})"
            work.file("kept.txt", kept, ordered=True)
        work.file("removed.parquet", self._all_columns(work, f"SELECT * FROM {fates} WHERE gone"))
        first = f"SELECT * FROM ranked WHERE rank <= {min(self.top, n)}"
        work.file("suspects.parquet", self._all_columns(work, first))
        return removed

    def _only_scored(self) -> str:
        return f"WHERE s.status = '{SCORED}'" if "status" in self.columns else ""

    def _parts(self) -> str:
        """Global row number and columns to rank by; NULL and NaN are an error."""
        columns = ", ".join(f"{_sound(column)} AS c{i}" for i, column in enumerate(self.by))
        return (
            f"SELECT (f.begin + s.file_row_number)::BIGINT AS row, {columns} "
            f"FROM {{source}} s JOIN files f ON f.number = s.file_index {self._only_scored()}"
        )

    def _ranks(self, last: str, position: int, column: str, n: int) -> str:
        """The table without a column, its rank share (`detect.metrics.rank_share`) added to the total."""
        rest = "".join(f"c{i}, " for i in range(position + 1, len(self.by)))
        share = f"((rank() OVER w + round(cume_dist() OVER w * {n})) / 2 - 0.5) / {n}"
        total = f"total + {share}" if position else share
        return f"SELECT row, {rest}{total} AS total FROM {last} WINDOW w AS (ORDER BY c{position})"

    def _ranked(self, last: str) -> str:
        score = f"total / {len(self.by)}" if len(self.by) > 1 else "c0"
        return (
            "SELECT row, score, cume_dist() OVER (ORDER BY score DESC) AS p, "
            "row_number() OVER (ORDER BY score DESC, row) AS rank "
            f"FROM (SELECT row, {score} AS score FROM {last})"
        )

    def _removed(self, work: Work, n: int) -> int:
        rule = self.remove
        if not rule.given:
            return 0
        if rule.false_positives is not None:
            return int(work.rows(f"SELECT count(*) FROM ranked WHERE p <= {float(rule.false_positives)!r}")[0][0])
        number = rule.count if rule.count is not None else round(rule.share * n)  # type: ignore[operator]
        if number >= n:
            raise ValueError(f"the threshold ({rule}) would remove {number:,} of {n:,} samples, and leave none")
        return number

    def _all_columns(self, work: Work, chosen: str) -> str:
        """All columns of the samples that a query chooses from the ranked ones, by rank."""
        own = ", ".join(f"s.{quoted(name)}" for name in self.columns if name not in ("score", "p", "rank"))
        return (
            f"SELECT {own}, r.score, r.p, r.rank FROM {work.source} s JOIN files f ON f.number = s.file_index JOIN "
            f"({chosen}) r ON r.row = f.begin + s.file_row_number ORDER BY r.rank"
        )

    def _domains(self, work: Work, n: int, removed: int) -> tuple[list[Any], tuple[int, int], list[Any]]:
        """See `Ranked`: domains, addresses, unusual; nothing without addresses."""
        if "url" not in self.columns:
            return [], (0, 0), []
        key = "key" if "key" in self.columns else "NULL"
        work.table(
            "domains",
            f"SELECT {DOMAIN} AS domain, count(*) AS n FROM {{source}} s {self._only_scored()} GROUP BY 1",
        )
        gone = f"read_parquet({text(work.out / 'removed.parquet')})"
        lift = f"(r.removed / {max(removed, 1)}) / (d.n / {n})"
        work.file(
            "domains.parquet",
            f"SELECT domain, d.n, r.removed, {lift} AS lift, r.examples FROM domains d JOIN "
            f"(SELECT {DOMAIN} AS domain, count(*) AS removed, list({key} ORDER BY rank)[1:3] AS examples "
            f"FROM {gone} GROUP BY 1) r USING (domain) ORDER BY r.removed DESC, domain",
        )
        written = f"read_parquet({text(work.out / 'domains.parquet')})"
        known, number = work.rows("SELECT coalesce(sum(n), 0), count(*) FROM domains WHERE domain <> ''")[0]
        share = removed / n
        excess = f"(removed - n * {share!r})"
        unusual = work.rows(
            f"SELECT domain, n, removed, lift, examples FROM {written} WHERE domain <> '' AND removed >= {FEW} AND "
            f"{excess} >= {DEVIATIONS} * sqrt(n * {share!r} * (1 - {share!r})) ORDER BY {excess} DESC, domain "
            f"LIMIT {SHOWN}"
        )
        most = work.rows(f"SELECT domain, n, removed, lift FROM {written} LIMIT 20")
        return most, (int(known), int(number)), unusual


def _repeated(work: Work, columns: Sequence[str]) -> bool:
    """Whether samples of several parts have the same id; ValueError for a sample that is in two parts.

    Ids of one shard or file differ in their lower 20 bits alone, so few of them need to be compared.
    """
    if work.rows(f"SELECT typeof(id) FROM {work.source} LIMIT 1") != [("BIGINT",)]:
        return False
    shared = f"SELECT id >> 20 FROM {work.source} GROUP BY 1 HAVING min(file_index) <> max(file_index)"
    if not work.rows(f"{shared} LIMIT 1"):
        return False
    of_shared = f"FROM {work.source} WHERE (id >> 20) IN ({shared})"
    names = ", ".join(quoted(name) for name in ("id", "key", "shard", "caption") if name in columns)
    twice = f"SELECT id, min(filename), max(filename) {of_shared} GROUP BY {names} HAVING count(*) > 1 LIMIT 1"
    for id, one, other in work.rows(twice):
        where = f"in {one} and in {other}" if one != other else f"twice in {one}"
        raise ValueError(f"each sample must be given once, but the one with the id {id} is {where}")
    return bool(work.rows(f"SELECT 1 {of_shared} GROUP BY id HAVING count(*) > 1 LIMIT 1"))


def _histogram(work: Work, n: int, bins: int = 60) -> dict[str, Any]:
    """Counts of the score; what lies beyond the 0.1th and the 99.95th percentile is counted in the last bins."""
    ends = [max(1, round(0.0005 * n)), max(1, round(0.999 * n))]
    found = work.rows(f"SELECT score FROM ranked WHERE rank IN ({ends[0]}, {ends[1]}) ORDER BY rank")
    high, low = float(found[0][0]), float(found[-1][0])
    high = high if high > low else low + 1
    place = f"least({bins - 1}, greatest(0, floor((score - {low!r}) / {high - low!r} * {bins})))::INTEGER"
    counts = [0] * bins
    for at, count in work.rows(f"SELECT {place}, count(*) FROM ranked GROUP BY 1"):
        counts[at] = int(count)
    return {"low": low, "high": high, "counts": counts}


def _sound(column: str) -> str:
    """A column as a number; DuckDB refuses a row in which it is none."""
    value = f"s.{quoted(column)}::DOUBLE"
    said = text(f"column {column} must hold a finite score for every scored sample, but some have none")
    return f"CASE WHEN {value} IS NULL OR NOT isfinite({value}) THEN error({said}) ELSE {value} END"
