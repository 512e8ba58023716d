"""The engine that ranks out of core: DuckDB, with bounded memory, whose finished steps outlive a kill."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.runtime.atomic import whole

if TYPE_CHECKING:
    import pandas as pd
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

INSTALL = "ranking needs the package duckdb; install it with: .venv/bin/uv pip install -e '.[scale]'"
WORK = "ranking.duckdb"
"""What a killed ranking goes on with; removed at the end."""


class Work:
    """A connection whose steps are done once, in whichever process.

    files: the parts.  begins: number of rows before each of them, and of all.
    """

    def __init__(self, connection: DuckDBPyConnection, out: Path, files: Sequence[Path], begins: list[int]) -> None:
        self.out, self.files, self.begins = out, files, begins
        self._connection = connection
        self.source = f"read_parquet([{', '.join(map(text, files))}])"

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

    def give(self, name: str, **columns: Any) -> None:
        """Columns (m,) of numbers or texts as a table that queries can name; it is in memory."""
        import pyarrow as pa

        self._connection.register(name, pa.table(columns))

    def frame(self, query: str) -> pd.DataFrame:
        """What a query finds."""
        return self._connection.execute(query).df()

    def file(self, name: str, query: str, ordered: bool = False) -> None:
        """Write <name>: a Parquet file, or a text file with the one column of the query on each line."""
        log.info("%s", name)
        self._order(ordered or "ORDER BY" in query)
        form = "csv, HEADER false" if name.endswith(".txt") else "parquet"
        with whole(self.out / name) as temporary:
            self._connection.execute(f"COPY ({query}) TO {text(temporary)} (FORMAT {form})")

    def _order(self, kept: bool) -> None:
        self._connection.execute(f"SET preserve_insertion_order = {str(kept).lower()}")


@contextmanager
def working(
    out: Path, files: Sequence[Path], identity: Mapping[str, Any], memory_mb: int, threads: int | None
) -> Iterator[Work]:
    """The steps that an earlier process of the same ranking has done, or none yet.

    identity: JSON values that, with the files, decide what the steps compute.
    """
    try:
        import duckdb
    except ImportError:
        raise ImportError(INSTALL) from None
    from pyarrow.parquet import read_metadata

    out.mkdir(parents=True, exist_ok=True)
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    known_by = json.dumps({"files": facts, **identity})
    settings = {
        "threads": threads or duckdb.connect().execute("SELECT current_setting('threads')").fetchall()[0][0],
        "memory_limit": f"{memory_mb}MB",
        "temp_directory": str(out / "ranking.tmp"),
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    begins = list(itertools.accumulate((read_metadata(file).num_rows for file in files), initial=0))
    try:
        with duckdb.connect(str(out / WORK), config=settings) as connection:
            work = Work(connection, out, files, begins)
            connection.execute("CREATE TABLE IF NOT EXISTS steps (name VARCHAR, rows BIGINT)")
            connection.execute("CREATE TABLE IF NOT EXISTS made_of (identity VARCHAR)")
            if (known := work.rows("SELECT identity FROM made_of")) and known != [(known_by,)]:
                for (name,) in work.rows("SELECT table_name FROM duckdb_tables() WHERE table_name <> 'made_of'"):
                    connection.execute(f"DROP TABLE {name}")
                connection.execute("CREATE TABLE steps (name VARCHAR, rows BIGINT)")
            if known != [(known_by,)]:
                connection.execute("DELETE FROM made_of")
                connection.execute("INSERT INTO made_of VALUES (?)", [known_by])
            rows = ", ".join(f"({number}, {begin})" for number, begin in enumerate(begins))
            work.table("files", f"SELECT * FROM (VALUES {rows}) AS v(number, begin)")
            yield work
    except (duckdb.InvalidInputException, duckdb.ConversionException) as error:
        raise ValueError(str(error).partition("Error: ")[2].splitlines()[0]) from None
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise RuntimeError(f"ranking failed: {str(error).splitlines()[0]}") from error
    (out / WORK).unlink()


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def text(value: object) -> str:
    return "'" + str(value).replace("'", "''") + "'"
