"""Files with an image in each row, Parquet or Arrow: columns in a stream, and one row's image by its key.

A key is `<file>:<row in the file>`; the file is named by its path below the folder that all files lie in. Parquet
is read a row group at a time, and the last groups are kept in memory. Arrow files are memory-mapped.
"""

from __future__ import annotations

import functools
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.data.damage import DecodeError
from experiments.data.image_files import ImageFolder
from experiments.data.row_columns import is_text
from experiments.data.row_readers import BrokenFile, Rows, brief, open_rows, read_errors
from experiments.data.shard_pairs import ChangedShard, file_stamp

KEPT = 64 << 20
"""Bytes of row groups that a process keeps for the rows that come next; the last one is kept in any case."""
_OPEN = 32  # files
_BLOCK = 8192  # rows of other columns


@dataclass(frozen=True)
class Block:
    """Consecutive rows of one file: cells by column, `DecodeError` for one that cannot be read; None: none can."""

    file: int
    begin: int
    length: int
    cells: dict[str, list[Any]] | None
    error: str = ""

    def cell(self, column: str, row: int) -> Any:
        """The cell in the `row`-th row of the block; raises DecodeError."""
        if self.cells is None:
            raise DecodeError("broken row group", self.error)
        value = self.cells[column][row]
        if isinstance(value, DecodeError):
            raise value
        return value


@dataclass(frozen=True)
class RowFiles:
    """paths: absolute, in order.  image: the column.  images: the folder that paths of images are relative to and
    must stay in; None: that of each file.  stamps: what each file was like when it was listed; None: not checked.
    """

    paths: tuple[str, ...]
    image: str
    images: str | None = None
    follow_links: bool = False
    max_bytes: int = 200_000_000
    stamps: tuple[Any, ...] | None = None
    _here: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __reduce__(self) -> Any:
        return RowFiles.of, (self.facts(),)

    def facts(self) -> dict[str, Any]:
        """Plain JSON values, which `of` takes."""
        plain = {name: getattr(self, name) for name in ("image", "images", "follow_links", "max_bytes")}
        stamps = None if self.stamps is None else [list(stamp) for stamp in self.stamps]
        return {"paths": list(self.paths), **plain, "stamps": stamps}

    @classmethod
    def of(cls, facts: dict[str, Any]) -> RowFiles:
        """The files that `facts` tell of; the same object as the time before, with what it has open."""
        return _of(json.dumps(facts))

    @property
    def names(self) -> list[str]:
        """Paths below the folder that all files lie in."""
        top = os.path.commonpath([os.path.dirname(path) for path in self.paths])
        return [os.path.relpath(path, top) for path in self.paths]

    def schema(self, number: int) -> Any:
        """The Arrow schema of a file; raises BrokenFile."""
        return self._opened().file(number).schema

    def rows(self, number: int) -> int:
        """The number of rows of a file; raises BrokenFile."""
        return self._opened().file(number).rows

    def group_bytes(self, number: int) -> list[int]:
        """What each row group of a file takes in memory, as the file says; raises BrokenFile."""
        file = self._opened().file(number)
        return [file.bytes_of(group) for group in range(len(file.starts) - 1)]

    def keys(self, files: np.ndarray, rows: np.ndarray) -> list[str]:
        """Keys of rows (n,) in the files of the numbers `files` (n,)."""
        names = self.names
        return [f"{names[number]}:{row}" for number, row in zip(files.tolist(), rows.tolist(), strict=True)]

    def read(self, key: str) -> bytes:
        """The image file in a row; raises DecodeError, or ChangedShard for a file that is another one now."""
        name, _, row = key.rpartition(":")
        opened = self._opened()
        number = opened.numbers[name]
        try:
            value = opened.value(number, int(row))
        except BrokenFile as error:
            raise DecodeError("broken file", str(error)) from None
        return _content(value, self.folder(number))

    def folder(self, number: int) -> ImageFolder:
        """Where the paths in a file lead."""
        return ImageFolder(self.images or os.path.dirname(self.paths[number]), self.follow_links, self.max_bytes)

    def blocks(self, number: int, columns: Sequence[str]) -> Iterator[Block]:
        """The cells of `columns` of a file, in order; raises BrokenFile."""
        file = self._opened().file(number)
        for group, (begin, end) in enumerate(zip(file.starts[:-1].tolist(), file.starts[1:].tolist(), strict=True)):
            done = begin
            try:
                for batch in file.batches(group, columns, _BLOCK):
                    batch = batch.slice(0, end - done)
                    cells = {name: _cells(batch.column(name)) for name in columns}
                    yield Block(number, done, len(batch), cells)
                    done += len(batch)
                if done < end:
                    yield Block(number, done, end - done, None, "it ends early")
            except read_errors() as error:
                yield Block(number, done, end - done, None, brief(error))

    def image_paths(self, number: int) -> Iterator[str]:
        """Paths of image files that a file names, also where it has the image itself; none of a broken file."""
        with suppress(BrokenFile, KeyError, *read_errors()):
            file = self._opened().file(number)
            kind = file.schema.field(self.image).type
            parts = {part.name for part in kind} if hasattr(kind, "fields") else set()
            if not (is_text(kind) or "path" in parts):
                return
            column = f"{self.image}.path" if parts else self.image
            for group in range(len(file.starts) - 1):
                for batch in file.batches(group, [column], _BLOCK):
                    cells = batch.column(0).field("path") if parts else batch.column(0)
                    yield from (text for text in _cells(cells) if isinstance(text, str))

    def _opened(self) -> _Opened:
        # Of this process: a fork must share neither locks nor files.
        mine: _Opened | None = self._here.get("opened")
        if mine is None or mine.pid != os.getpid():
            mine = self._here["opened"] = _Opened(self)
        return mine


@functools.lru_cache(maxsize=1)
def _of(facts: str) -> RowFiles:
    found = json.loads(facts)
    stamps = None if found["stamps"] is None else tuple(found["stamps"])
    return RowFiles(**{**found, "paths": tuple(found["paths"]), "stamps": stamps})


class _Opened:
    """Open files and the row groups last read; may be used from several threads."""

    def __init__(self, files: RowFiles) -> None:
        self.pid, self._files, self._lock = os.getpid(), files, threading.RLock()
        self.numbers = {name: number for number, name in enumerate(files.names)}
        self._open: OrderedDict[int, Rows] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], tuple[Any, int]] = OrderedDict()

    def file(self, number: int) -> Rows:
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
            path, stamps = self._files.paths[number], self._files.stamps
            if stamps is not None and stamps[number] != file_stamp(path):
                raise ChangedShard(f"{path} has changed since it was listed; run again to read it anew")
            opened = open_rows(path)
            if len(self._open) >= _OPEN:
                self._open.popitem(last=False)
            self._open[number] = opened
            return opened

    def value(self, number: int, row: int) -> Any:
        """The cell of the image in a row; raises DecodeError."""
        with self._lock:
            file = self.file(number)
            group = int(np.searchsorted(file.starts, row, side="right")) - 1
            try:
                column = self._group(number, group, file)
                return column[row - int(file.starts[group])].as_py()
            except UnicodeDecodeError:
                raise DecodeError("broken file name", "not in UTF-8") from None
            except IndexError:
                raise DecodeError("broken row group", "it ends early") from None
            except read_errors() as error:
                raise DecodeError("broken row group", brief(error)) from None

    def _group(self, number: int, group: int, file: Rows) -> Any:
        found = self._groups.get((number, group))
        if found is None:
            found = file.images(group, self._files.image)
            self._groups[number, group] = found
        self._groups.move_to_end((number, group))
        while len(self._groups) > 1 and sum(size for _, size in self._groups.values()) > KEPT:
            self._groups.popitem(last=False)
        return found[0]


def _content(value: Any, folder: ImageFolder) -> bytes:
    """The image file that a cell holds or names; raises DecodeError."""
    if isinstance(value, dict):
        content, path = value.get("bytes"), value.get("path")
        value = content if content is not None else path
    if value is None:
        raise DecodeError("missing image", "the row has none")
    if isinstance(value, str):
        if value.startswith(("http://", "https://")):
            raise DecodeError("missing file", "an address, not a file: img2dataset fetches images")
        return folder.read(value)
    if len(value) > folder.max_bytes:
        raise DecodeError("too large", f"{len(value):,} bytes, more than {folder.max_bytes:,}")
    return bytes(value)


def _cells(column: Any) -> list[Any]:
    """Python values; a text that is not in UTF-8 as bytes, what cannot be read otherwise as a DecodeError."""
    import pyarrow as pa

    try:
        return column.to_pylist()
    except read_errors():
        if is_text(column.type) and not pa.types.is_dictionary(column.type):
            return column.cast(pa.large_binary()).to_pylist()
    cells: list[Any] = []
    for cell in column:
        try:
            cells.append(cell.as_py())
        except read_errors() as error:
            cells.append(DecodeError("broken row", brief(error)))
    return cells
