"""The samples of files of rows: how many, their ids and captions, and what is wrong with rows and files.

A sample's id is made of its file's name and its row, as the ids of shards are (`experiments.data.sample_ids`): a
file counts as a shard, and each further 2**20 of its rows as another one of the same name.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from experiments.data.caption_values import clean_caption
from experiments.data.damage import DecodeError, Issue
from experiments.data.pairs import Progress, counting
from experiments.data.row_files import RowFiles
from experiments.data.row_readers import LARGEST_GROUP, BrokenFile
from experiments.data.sample_ids import POSITIONS, first_ids, locate


class RowIds:
    """Ids of the rows of files at `paths` with `counts` rows each."""

    def __init__(self, paths: Sequence[str], counts: Sequence[int]) -> None:
        blocks = [
            (number, begin) for number, count in enumerate(counts) for begin in range(0, max(count, 1), POSITIONS)
        ]
        self._files, self._begins = np.array(blocks, np.int64).reshape(-1, 2).T
        self._names = [os.path.basename(paths[number]) for number, _ in blocks]
        lengths = np.minimum(np.array(counts, np.int64)[self._files] - self._begins, POSITIONS)
        firsts = first_ids(self._names, "data.path")
        parts = [first + np.arange(length) for first, length in zip(firsts.tolist(), lengths.tolist(), strict=True)]
        self.all: np.ndarray = np.concatenate([np.zeros(0, np.int64), *parts])
        """(n,) int64, in the order of the files and rows."""

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) number of the file and (n,) row in it of each id."""
        block, position = locate(ids, self._names)
        return self._files[block], self._begins[block] + position


def count_rows(rows: RowFiles, columns: Sequence[str]) -> tuple[list[int], list[Issue]]:
    """The number of rows of each file, 0 for one that cannot be read or lacks a column; these files.

    How many rows a broken file has lost is estimated from the others.  Raises ValueError for a row group that
    memory cannot hold.
    """
    counts, broken = [], []
    for number, path in enumerate(rows.paths):
        try:
            schema = rows.schema(number)
            missing = [name for name in columns if name not in schema.names]
            if missing:
                raise BrokenFile(f"it has no column {missing[0]!r}")
            sizes = rows.group_bytes(number)
            counts.append(rows.rows(number))
        except BrokenFile as error:
            kind = "broken file" if os.path.exists(path) else "missing file"
            broken.append((rows.names[number], kind, str(error)))
            counts.append(0)
            continue
        if sizes and max(sizes) > LARGEST_GROUP:
            raise ValueError(
                f"{path}: row group {sizes.index(max(sizes))} holds {max(sizes):,} bytes, more than the "
                f"{LARGEST_GROUP:,} that fit into memory; write the file anew with smaller row groups, such as "
                "pyarrow.parquet.write_table(..., row_group_size=100)"
            )
    typical = int(np.median([count for count in counts if count] or [1]))
    return counts, [Issue(-1, *what, samples=typical) for what in broken]


def read_captions(
    rows: RowFiles, column: str, counts: Sequence[int], ids: np.ndarray, progress: Progress | None
) -> tuple[list[str | None], list[Issue]]:
    """The caption of each row, None for a sample that cannot be used; issues.

    counts: of the rows of each file.  ids: (n,) of all rows.
    """
    captions: list[str | None] = []
    issues: list[Issue] = []
    with counting(progress, len(ids), "reading captions") as shown:
        for number in np.flatnonzero(counts).tolist():
            for block in rows.blocks(number, [column]):
                for row in range(block.length):
                    id, source = int(ids[len(captions)]), f"{rows.names[number]}:{block.begin + row}"
                    try:
                        text, notes = clean_caption(block.cell(column, row))
                    except DecodeError as damage:
                        captions.append(None)
                        issues.append(Issue(id, source, damage.kind, damage.detail))
                        continue
                    captions.append(text)
                    issues += [Issue(id, source, note, note=True) for note in notes]
                shown.update(block.length)
    if len(captions) != len(ids):
        raise RuntimeError(f"{len(captions):,} captions were read for {len(ids):,} rows: the files have changed")
    return captions, issues
