"""Columns of a CSV, TSV or Parquet table, with what is wrong named by its row.

A tab-separated table has no quoting unless asked for: the TSV of CC3M holds captions that begin with a lone quote.
Elsewhere a quote that is not closed would swallow the rows behind it, and is refused.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.data.caption_values import text_encoding
from experiments.runtime.nearest_name import did_you_mean

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t", ".tab": "\t"}
_IMAGE = re.compile(r"\.(jpe?g|png|gif|webp|bmp|tiff?|avif)\s*\"?$", re.IGNORECASE)


@dataclass(frozen=True)
class TextFormat:
    """Of a table that is text; None: `sep` by the file's ending, quoting unless it is a tab, `encoding` by a
    byte-order mark, else UTF-8."""

    sep: str | None = None
    quoting: bool | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.sep is not None and (len(self.sep) != 1 or self.sep in '"\r\n'):
            raise ValueError(f"data.sep must be one character, no quote and no line end, got {self.sep!r}")
        if self.encoding is not None:
            try:
                "a".encode(self.encoding, "surrogatepass")  # as the table is read; not all take it
            except (LookupError, ValueError):
                raise ValueError(
                    f"data.encoding={self.encoding!r} is no text encoding that Python knows, such as utf-8, latin-1"
                ) from None


@dataclass
class Columns:
    """values: a list for each column. broken: row -> what is wrong with it; its values are None."""

    values: list[list[Any]]
    broken: dict[int, str] = field(default_factory=dict)


def read_columns(file: Path, wanted: dict[str, str], text: TextFormat) -> Columns:
    """The columns that `wanted` names by option; rows are those behind the heading, blank lines not counted.

    A ValueError names what cannot be read, and its row, or lists the columns.
    """
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            return _read_parquet(file, wanted)
        return _read_text(file, wanted, text)
    except OSError as error:
        raise ValueError(
            f"data.table={file} cannot be read: {error.strerror or str(error).splitlines()[0]}"
        ) from None


def _positions(names: Sequence[str], file: Path, wanted: dict[str, str]) -> list[int]:
    counts = Counter(names)
    for option, name in wanted.items():
        if name not in counts:
            raise ValueError(
                f"data.{option}={name!r} is no column of {file}; its columns: {', '.join(map(repr, names))}"
                f"{did_you_mean(name, names)}"
            )
        if counts[name] > 1:
            raise ValueError(f"data.{option}={name!r}: {file} has {counts[name]} columns of this name")
    return [names.index(name) for name in wanted.values()]


def _read_parquet(file: Path, wanted: dict[str, str]) -> Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as table:
            _positions(table.schema_arrow.names, file, wanted)
            read = table.read(columns=list(dict.fromkeys(wanted.values())))
            return Columns([read[name].to_pylist() for name in wanted.values()])
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"data.table={file} cannot be read: {str(error).splitlines()[0]}") from None


def _read_text(file: Path, wanted: dict[str, str], text: TextFormat) -> Columns:
    with open(file, "rb") as stream:
        encoding = text.encoding or text_encoding(stream.read(4)) or "utf-8"
    sep = text.sep or _SEPARATORS.get(file.suffix.lower(), ",")
    try:
        # Halves of surrogate pairs are a matter of the sample that holds them.
        return _columns(_Rows(file, sep, text.quoting, encoding, "surrogatepass"), wanted)
    except UnicodeDecodeError as error:
        wide = encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32", "utf16", "utf32"))
        marked = re.compile("\ufffd" if wide else "[\udc80-\udcff]")
        rows = _Rows(file, sep, text.quoting, encoding, "replace" if wide else "surrogateescape")
        found = next((rows.place for row in rows if any(marked.search(cell) for cell in row)), "the last row")
        raise ValueError(
            f"data.table={file}, {found}: not in {encoding} ({error.reason}); give data.encoding, such as latin-1"
        ) from None


def _columns(rows: _Rows, wanted: dict[str, str]) -> Columns:
    cells = iter(rows)
    heading = next(cells, [])
    if heading:
        heading[0] = heading[0].removeprefix("\ufeff")
    positions = _positions(heading, rows.file, wanted)
    columns = Columns([[] for _ in positions])
    for row in cells:
        if len(row) != len(heading):
            columns.broken[rows.number] = f"{len(row)} fields, not {len(heading)} ({rows.place})"
            row = [""] * len(heading)
        for values, position in zip(columns.values, positions, strict=True):
            values.append(row[position] or None)
    return columns


class _Rows:
    """Iterates over the rows of a text table, the heading first; `number` is the row's, -1 for the heading."""

    def __init__(self, file: Path, sep: str, quoting: bool | None, encoding: str, errors: str) -> None:
        self.file, self.sep, self.quoting, self.encoding, self.errors = file, sep, quoting, encoding, errors
        self.number, self.line = -1, 1

    @property
    def place(self) -> str:
        row = "the heading" if self.number < 0 else f"row {self.number}"
        return f"{row} (line {self.line})"

    def __iter__(self) -> Iterator[list[str]]:
        quoted = self.sep != "\t" if self.quoting is None else self.quoting
        csv.field_size_limit(2**31 - 1)  # of the module; by default, a long caption is an error
        with open(self.file, newline="", encoding=self.encoding, errors=self.errors) as stream:
            reader = csv.reader(
                stream, delimiter=self.sep, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=True
            )
            self.number, self.line = -1, 1
            while True:
                try:
                    row = next(reader, None)
                except csv.Error as error:
                    raise self._refusal(f"a quote is not closed, or is followed by text ({error})") from None
                if row is None:
                    return
                if row:
                    if self.quoting is None and reader.line_num > self.line and self._swallows(row):
                        raise self._refusal("the quote that begins here is closed some rows later")
                    yield row
                    self.number += 1
                self.line = reader.line_num + 1

    def _swallows(self, row: list[str]) -> bool:
        """Whether a cell of several lines holds a whole row: one with a separator and the name of an image."""
        return any(
            any(_IMAGE.search(piece) for piece in line.split(self.sep))
            for cell in row
            if "\n" in cell or "\r" in cell
            for line in re.split(r"[\r\n]+", cell)
            if self.sep in line
        )

    def _refusal(self, what: str) -> ValueError:
        return ValueError(
            f"data.table={self.file}, {self.place}: {what}. Mend it, or give data.quoting=false if quotes belong "
            "to the texts, true if they enclose texts of several lines"
        )
