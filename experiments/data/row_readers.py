"""One file of rows, Parquet or Arrow: its row groups, and the cells of a group in batches.

Memory is bounded: a batch of Parquet has fewer rows where the group is large, as a value that many rows repeat is
small in the file and large in memory. Arrow files are memory-mapped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from experiments.data.damage import DecodeError

LARGEST_GROUP = 1 << 30
"""Bytes of images in one row group of Parquet: to read one of its rows means to hold them all."""
_ROWS = 100_000  # beside one for each byte of the file: more is not believed
_STEP = 64  # rows of images decoded at a time, so that a group that is too large is found out before it is read


class BrokenFile(Exception):
    """A file that cannot be read at all: what is wrong with it, on one line."""


class Rows(Protocol):
    """starts: (groups + 1,) first row of each row group, and the number of rows."""

    starts: np.ndarray
    schema: Any
    rows: int

    def batches(self, group: int, columns: Sequence[str] | None, size: int) -> Iterator[Any]:
        """Up to `size` rows of some columns at a time, None: of all; a column may be `<column>.<field>` for a part
        of it."""

    def bytes_of(self, group: int) -> int:
        """What a row group takes in memory, as the file says."""

    def images(self, group: int, column: str) -> tuple[Any, int]:
        """The column of a row group, and the bytes of memory that it takes; raises DecodeError."""


def open_rows(path: str) -> Rows:
    """A file of rows, by its first bytes; raises BrokenFile."""
    try:
        with open(path, "rb") as stream:
            first = stream.read(4)
        kinds: dict[bytes, Callable[[str], Rows]] = {
            b"PAR1": ParquetRows,
            b"ARRO": ArrowRows,
            b"\xff\xff\xff\xff": ArrowRows,
        }
        kind = kinds.get(first)
        if kind is not None:
            rows = kind(path)
            for column in rows.schema:  # a UnicodeDecodeError for names that are not in UTF-8
                _ = column.name, [part.name for part in column.type] if hasattr(column.type, "fields") else []
            return rows
    except OSError as error:
        raise BrokenFile(error.strerror or brief(error)) from None
    except read_errors() as error:
        raise BrokenFile(brief(error)) from None
    raise BrokenFile(f"neither Parquet nor Arrow: it begins with {first!r}" if first else "empty file")


class ParquetRows:
    """A Parquet file."""

    def __init__(self, path: str) -> None:
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
        metadata = self._file.metadata
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        most = _ROWS + os.path.getsize(path)
        if min(counts, default=0) < 0 or sum(counts) > most:
            raise BrokenFile(f"it claims {sum(counts):,} rows in {most - _ROWS:,} bytes")
        self.starts, self.schema = np.cumsum([0, *counts]), self._file.schema_arrow
        self.rows = int(self.starts[-1])

    def batches(self, group: int, columns: Sequence[str] | None, size: int) -> Iterator[Any]:
        size = max(1, min(size, LARGEST_GROUP // max(1, self.bytes_of(group))))
        names = None if columns is None else list(columns)
        yield from self._file.iter_batches(size, row_groups=[group], columns=names, use_threads=False)

    def bytes_of(self, group: int) -> int:
        # Of all columns: to ask a column for its own ends the process (pyarrow 26) if its statistics are broken.
        return int(self._file.metadata.row_group(group).total_byte_size)

    def images(self, group: int, column: str) -> tuple[Any, int]:
        import pyarrow as pa

        parts: list[Any] = []
        size = self.bytes_of(group)
        if size <= LARGEST_GROUP:  # as far as the file says
            size = 0
            for batch in self.batches(group, [column], _STEP):
                parts.append(batch.column(0))
                size += batch.nbytes
                if size > LARGEST_GROUP:
                    break
        if size > LARGEST_GROUP:
            raise DecodeError("row group too large", f"{size:,} bytes, more than {LARGEST_GROUP:,}")
        return pa.chunked_array(parts), size


class ArrowRows:
    """An Arrow stream or file, memory-mapped; its record batches stand for row groups."""

    def __init__(self, path: str) -> None:
        import pyarrow as pa

        self._source = pa.memory_map(path)
        stream = self._source.read(6) != b"ARROW1"
        self._source.seek(0)
        self._batches, used = [], 0
        reader = pa.ipc.open_stream(self._source) if stream else pa.ipc.open_file(self._source)
        for number in range(1 << 40 if stream else reader.num_record_batches):
            try:
                batch = reader.read_next_batch() if stream else reader.get_batch(number)
            except StopIteration:
                break
            batch.validate(full=True)  # offsets that lead out of the file
            used += batch.nbytes
            if used > 2 * self._source.size() + (1 << 20):
                raise pa.ArrowInvalid("a compressed Arrow file, of which no row can be read alone")
            self._batches.append(batch)
        self.starts, self.schema = np.cumsum([0, *map(len, self._batches)]), reader.schema
        self.rows = int(self.starts[-1])

    def batches(self, group: int, columns: Sequence[str] | None, size: int) -> Iterator[Any]:
        whole = self._batches[group]
        if columns is not None:
            whole = whole.select([name.removesuffix(".path") for name in columns])
        for begin in range(0, len(whole), size):
            yield whole.slice(begin, size)

    def bytes_of(self, group: int) -> int:
        return 0  # it stays in the file

    def images(self, group: int, column: str) -> tuple[Any, int]:
        return self._batches[group].column(column), 0


def read_errors() -> tuple[type[Exception], ...]:
    """What pyarrow raises for broken files."""
    import pyarrow as pa

    return (pa.ArrowException, OSError, ValueError, OverflowError)


def brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
