"""The last step of a scan in parts, out of core by DuckDB: join, rank, threshold, top suspects, domains.

Memory is bounded whatever the number of samples; what does not fit is in files beside the results. Scores, ranks
and p-values are those that `task=scan` computes in memory (`detect.metrics`, `detect.conformal`): ties of a column
share their mean rank, ties of the final score keep the order of the files. Each step is a transaction, so that a
killed ranking goes on with the step it was in.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.data.unscored import SCORED
from experiments.runtime.atomic import whole
from experiments.tasks.thresholds import Threshold

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

INSTALL = "ranking needs the package duckdb; install it with: .venv/bin/uv pip install -e '.[scale]'"
WORK = "ranking.duckdb"
"""What a killed ranking goes on with; removed at the end."""
NAMES = ("id", "key", "shard", "file", "row")
"""Columns that say which sample a row is, as far as the parts have them."""
DOMAIN = "lower(split_part(split_part(split_part(coalesce(url, ''), '/', 3), '@', -1), ':', 1))"


@dataclass(frozen=True)
class Ranked:
    """n: samples ranked.  removed: of these, beyond the threshold.  unscored: kind -> samples without a score.

    domains: name, samples, removed samples, lift (how often removed, against all samples), the most removed first.
    """

    n: int
    removed: int
    unscored: dict[str, int]
    domains: list[tuple[str, int, int, float]]


@dataclass(frozen=True)
class Ranking:
    """What to rank, by what.

    files: Parquet files of a scan's parts, in order.  columns: their names.
    by: columns to rank by; of several, the score is the mean of their rank shares.
    remove: which samples count as suspects.  top: suspects written, of all columns.
    memory_mb: bound on DuckDB's memory.  threads: None: the number of cores.
    """

    files: Sequence[Path]
    columns: Sequence[str]
    by: Sequence[str]
    remove: Threshold
    top: int = 2000
    memory_mb: int = 2000
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.remove.reference is not None:
            raise ValueError("a ranking out of core takes no reference: remove by share, count or false_positives")
        for name, least in (("top", 1), ("memory_mb", 500)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def write(self, out: Path) -> Ranked:
        """scores.parquet, removed.parquet, suspects.parquet and, if there are urls, domains.parquet, in `out`.

        Raises ImportError without DuckDB, ValueError for scores that cannot be ranked.
        """
        with _work(out, self) as work:
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
            removed = self._removed(work, n)
            work.table("by_row", "SELECT row, score, p, rank FROM ranked ORDER BY row", ordered=True)
            names = [_quoted(name) for name in NAMES if name in self.columns]
            scored = f"(SELECT {', '.join([*names, '1'])} FROM {work.source} s {self._only_scored()}) a"
            chosen = ", ".join([*(f"a.{name}" for name in names), "b.score, b.p, b.rank"])
            work.file("scores", f"SELECT {chosen} FROM {scored} POSITIONAL JOIN by_row b", ordered=True)
            for name, most in (("removed", removed), ("suspects", min(self.top, n))):
                work.file(name, self._first(work, most))
            domains = self._domains(work, n, removed) if "url" in self.columns else []
            counts = (
                f"SELECT status, count(*) FROM {work.source} WHERE status <> '{SCORED}' GROUP BY 1 ORDER BY 2 DESC"
            )
            unscored = work.rows(counts) if "status" in self.columns else []
        return Ranked(n, removed, dict(unscored), domains)

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

    def _removed(self, work: _Work, n: int) -> int:
        rule = self.remove
        if rule.false_positives is not None:
            return int(work.rows(f"SELECT count(*) FROM ranked WHERE p <= {float(rule.false_positives)!r}")[0][0])
        number = rule.count if rule.count is not None else round(rule.share * n)  # type: ignore[operator]
        if number >= n:
            raise ValueError(f"the threshold ({rule}) would remove {number:,} of {n:,} samples, and leave none")
        return number

    def _first(self, work: _Work, most: int) -> str:
        """All columns of the `most` samples that rank highest."""
        own = ", ".join(f"s.{_quoted(name)}" for name in self.columns if name not in ("score", "p", "rank"))
        return (
            f"SELECT {own}, r.score, r.p, r.rank FROM {work.source} s JOIN files f ON f.number = s.file_index JOIN "
            f"(SELECT * FROM ranked WHERE rank <= {most}) r ON r.row = f.begin + s.file_row_number ORDER BY r.rank"
        )

    def _domains(self, work: _Work, n: int, removed: int) -> list[tuple[str, int, int, float]]:
        key = "key" if "key" in self.columns else "NULL"
        work.table(
            "domains",
            f"SELECT {DOMAIN} AS domain, count(*) AS n FROM {{source}} s {self._only_scored()} GROUP BY 1",
        )
        gone = f"read_parquet({_text(work.out / 'removed.parquet')})"
        lift = f"(r.removed / {max(removed, 1)}) / (d.n / {n})"
        work.file(
            "domains",
            f"SELECT domain, d.n, r.removed, {lift} AS lift, r.examples FROM domains d JOIN "
            f"(SELECT {DOMAIN} AS domain, count(*) AS removed, list({key} ORDER BY rank)[1:3] AS examples "
            f"FROM {gone} GROUP BY 1) r USING (domain) ORDER BY r.removed DESC, domain",
        )
        return work.rows(
            f"SELECT domain, n, removed, lift FROM read_parquet({_text(work.out / 'domains.parquet')}) LIMIT 20"
        )


class _Work:
    """A connection whose steps are done once, in whichever process."""

    def __init__(self, connection: DuckDBPyConnection, out: Path, files: Sequence[Path]) -> None:
        self.out = out
        self._connection = connection
        self.source = f"read_parquet([{', '.join(map(_text, files))}])"

    def rows(self, query: str) -> list[Any]:
        return self._connection.execute(query).fetchall()

    def table(self, name: str, query: str, instead_of: str | None = None, ordered: bool = False) -> int:
        """Make a table, in the place of another one; its number of rows."""
        if done := self.rows(f"SELECT rows FROM steps WHERE name = '{name}'"):
            return int(done[0][0])
        log.info("%s", name)
        self._order(ordered)
        self._connection.execute("BEGIN")
        self._connection.execute(f"CREATE TABLE {name} AS {query.replace('{source}', self.source)}")
        rows = int(self.rows(f"SELECT count(*) FROM {name}")[0][0])
        self._connection.execute(f"INSERT INTO steps VALUES ('{name}', {rows})")
        if instead_of is not None:
            self._connection.execute(f"DROP TABLE {instead_of}")
        self._connection.execute("COMMIT")
        return rows

    def file(self, name: str, query: str, ordered: bool = False) -> None:
        """Write <name>.parquet."""
        log.info("%s.parquet", name)
        self._order(ordered or "ORDER BY" in query)
        with whole(self.out / f"{name}.parquet") as temporary:
            self._connection.execute(f"COPY ({query}) TO {_text(temporary)} (FORMAT parquet)")

    def _order(self, kept: bool) -> None:
        self._connection.execute(f"SET preserve_insertion_order = {str(kept).lower()}")


@contextmanager
def _work(out: Path, ranking: Ranking) -> Iterator[_Work]:
    """The steps that an earlier process of the same ranking has done, or none yet."""
    try:
        import duckdb
    except ImportError:
        raise ImportError(INSTALL) from None
    from pyarrow.parquet import read_metadata

    out.mkdir(parents=True, exist_ok=True)
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in ranking.files]
    identity = json.dumps({"files": facts, "by": list(ranking.by), "columns": list(ranking.columns)})
    settings = {
        "threads": ranking.threads
        or duckdb.connect().execute("SELECT current_setting('threads')").fetchall()[0][0],
        "memory_limit": f"{ranking.memory_mb}MB",
        "temp_directory": str(out / "ranking.tmp"),
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    try:
        with duckdb.connect(str(out / WORK), config=settings) as connection:
            work = _Work(connection, out, ranking.files)
            connection.execute("CREATE TABLE IF NOT EXISTS steps (name VARCHAR, rows BIGINT)")
            connection.execute("CREATE TABLE IF NOT EXISTS made_of (identity VARCHAR)")
            if (known := work.rows("SELECT identity FROM made_of")) and known != [(identity,)]:
                for (name,) in work.rows("SELECT table_name FROM duckdb_tables() WHERE table_name <> 'made_of'"):
                    connection.execute(f"DROP TABLE {name}")
                connection.execute("CREATE TABLE steps (name VARCHAR, rows BIGINT)")
            if known != [(identity,)]:
                connection.execute("DELETE FROM made_of")
                connection.execute("INSERT INTO made_of VALUES (?)", [identity])
            begins = itertools.accumulate((read_metadata(file).num_rows for file in ranking.files), initial=0)
            rows = ", ".join(f"({number}, {begin})" for number, begin in enumerate(begins))
            work.table("files", f"SELECT * FROM (VALUES {rows}) AS v(number, begin)")
            yield work
    except (duckdb.InvalidInputException, duckdb.ConversionException) as error:
        raise ValueError(str(error).partition("Error: ")[2].splitlines()[0]) from None
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise RuntimeError(f"ranking failed: {str(error).splitlines()[0]}") from error
    (out / WORK).unlink()


def _sound(column: str) -> str:
    """A column as a number; DuckDB refuses a row in which it is none."""
    value = f"s.{_quoted(column)}::DOUBLE"
    said = _text(f"column {column} must hold a finite score for every scored sample, but some have none")
    return f"CASE WHEN {value} IS NULL OR NOT isfinite({value}) THEN error({said}) ELSE {value} END"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"
