"""Writes Parquet files without what a scan has removed or not scored (`experiments.data.row_copy`)."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.row_copy import RowCopy
from experiments.data.row_data import Parquet
from experiments.data.row_listing import RowIds, count_rows
from experiments.data.row_readers import BrokenFile, ParquetRows, open_rows
from experiments.tasks.cleaned_copy import write_whole_file

log = logging.getLogger(__name__)


class ParquetCopier:
    """A `cleaned_copy.Copier` of Parquet files; raises ValueError for an Arrow file among them.

    Of each file it reports
    written: rows in it.
    unreadable: rows to keep that were not written: what was scored of them can be read, but not another column.
    by_path: images of which a row has the path alone, which is relative to the original's folder or to `data.root`.
    damage: if nothing of it can be read; it is not written then.
    """

    def __init__(self, data: Parquet) -> None:
        self._data, self._rows = data, data.open()
        self.names = [os.path.basename(path) for path in self._rows.paths]
        self._known: tuple[list[int], RowIds] | None = None
        for path in self._rows.paths:
            try:
                arrow = not isinstance(open_rows(path), ParquetRows)
            except BrokenFile:
                continue
            if arrow:
                raise ValueError(f"task.write_shards copies Parquet files, but {path} is an Arrow file")

    def fingerprint(self) -> str:
        return self._data.fingerprint()

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._counted()[1].locate(ids)

    def samples(self, number: int) -> int:
        return self._counted()[0][number]

    def copy(self, number: int, target: Path, kept: np.ndarray) -> dict[str, Any]:
        path = self._rows.paths[number]
        try:
            missing = [
                name for name in self._data.columns() if name and name not in self._rows.schema(number).names
            ]
            if missing:
                raise BrokenFile(f"it has no column {missing[0]!r}")
            copy = RowCopy(path, kept, self._data.columns()[0])
        except BrokenFile as error:
            return {"written": 0, "damage": str(error)}
        if not (target.exists() and copy.is_in(target)):
            write_whole_file(target, copy.write, copy.is_in, f"the {len(kept)} rows to keep")
        if copy.unreadable:
            log.warning("%s: %d rows to keep cannot be copied: %s", path, copy.unreadable, copy.error)
        return {"written": copy.written, "unreadable": copy.unreadable, "by_path": copy.by_path}

    def _counted(self) -> tuple[list[int], RowIds]:
        """The rows of each file, 0 of a broken one, and the ids of all."""
        if self._known is None:
            wanted = [name for name in self._data.columns() if name is not None]
            counts, _ = count_rows(self._rows, wanted)
            self._known = counts, RowIds(self._rows.paths, counts)
        return self._known
