"""Copies a Parquet file without some of its rows: same schema, same metadata, each value as it was.

A file is read and written a row group at a time; a row group of the copy is one of the original without some rows.
What the schema does not say is not kept: compression (Snappy here), encodings, page indices, Bloom filters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data.row_columns import is_text
from experiments.data.row_readers import BrokenFile, ParquetRows, brief, open_rows, read_errors
from experiments.runtime.atomic import sync

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 1024  # read at a time, and fewer of large ones
_BYTES = 1 << 28  # of a row group that is written; a larger one becomes several


class RowCopy:
    """The rows `kept` (m,), sorted, of the Parquet file `source`; raises BrokenFile.

    After `write` or `is_in`:
    written: rows of the copy.
    unreadable: rows to keep that are not in the copy, as their row group cannot be read: `error`.
    by_path: images (column `image`) of the copy that are a path, without the bytes.
    """

    def __init__(self, source: str, kept: np.ndarray, image: str) -> None:
        rows = open_rows(source)
        if not isinstance(rows, ParquetRows):
            raise BrokenFile("not a Parquet file")
        self._rows, self._kept, self._image = rows, kept, image
        self.written = self.unreadable = self.by_path = 0
        self.error = ""

    def write(self, target: Path) -> None:
        """Write `target`; it is on the disk when this returns."""
        from pyarrow.parquet import ParquetWriter

        with ParquetWriter(target, self._rows.schema) as writer:
            for table in self._tables():
                writer.write_table(table, row_group_size=len(table))
        sync(target)

    def is_in(self, target: Path) -> bool:
        """Whether `target` holds what `write` would write: schema, metadata, and every value."""
        from pyarrow.parquet import ParquetFile

        try:
            there = ParquetFile(target, pre_buffer=False)
            if not there.schema_arrow.equals(self._rows.schema, check_metadata=True):
                return False
            group = 0
            for group, table in enumerate(self._tables(), start=1):
                if group > there.num_row_groups or not _same(table, there.read_row_group(group - 1)):
                    return False
        except read_errors():
            return False
        return group == there.num_row_groups and there.metadata.num_rows == self.written

    def _tables(self) -> Iterator[pa.Table]:
        """The rows of the copy, a row group at a time; counts them."""
        import pyarrow as pa

        self.written = self.unreadable = self.by_path = 0
        for group, (begin, end) in enumerate(zip(self._rows.starts[:-1], self._rows.starts[1:], strict=True)):
            kept = self._kept[np.searchsorted(self._kept, begin) : np.searchsorted(self._kept, end)] - begin
            if not len(kept):
                continue
            done = 0  # of the rows to keep
            for batches in self._chunks(group, kept):
                table = pa.Table.from_batches(batches, self._rows.schema)
                done += len(table)
                self.written += len(table)
                self.by_path += _by_path(table[self._image])
                yield table
            self.unreadable += len(kept) - done

    def _chunks(self, group: int, kept: np.ndarray) -> Iterator[list[pa.RecordBatch]]:
        """The rows `kept` of a row group, up to where it breaks, in chunks that memory holds."""
        chunk: list[Any] = []
        size = begin = 0
        try:
            for batch in self._rows.batches(group, None, _ROWS):
                mine = kept[np.searchsorted(kept, begin) : np.searchsorted(kept, begin + len(batch))] - begin
                begin += len(batch)
                if len(mine):
                    chunk.append(batch if len(mine) == len(batch) else batch.take(mine))
                    size += chunk[-1].nbytes
                if size > _BYTES:
                    yield chunk
                    chunk, size = [], 0
        except read_errors() as error:
            self.error = brief(error)
        if chunk:
            yield chunk


def _by_path(column: Any) -> int:
    """How many images of a column are a path alone."""
    import pyarrow.compute as pc

    if is_text(column.type):
        return len(column) - column.null_count
    if not hasattr(column.type, "fields") or {"bytes", "path"} - {field.name for field in column.type.fields}:
        return 0
    content, path = (pc.struct_field(column, name) for name in ("bytes", "path"))
    return int(pc.sum(pc.and_(pc.is_null(content), pc.is_valid(path))).as_py() or 0)


def _same(one: pa.Table, other: pa.Table) -> bool:
    """Whether two tables hold the same values, NaN like NaN."""
    if len(one) != len(other):
        return False
    pairs = zip(one.columns, other.columns, strict=True)
    return all(left.equals(right) or _same_values(left, right) for left, right in pairs)


def _same_values(left: Any, right: Any) -> bool:
    return all(
        repr(left.slice(begin, _ROWS).to_pylist()) == repr(right.slice(begin, _ROWS).to_pylist())
        for begin in range(0, len(left), _ROWS)
    )
