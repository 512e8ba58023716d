"""Pictures that are not those that were downloaded, by the SHA-256 that img2dataset noted beside them.

img2dataset notes the hash of the file as it was fetched. So only shards of files that it has neither resized nor
encoded again can be checked; in others nearly every picture differs.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data.row_data import RowData
from experiments.data.shards import Shards
from experiments.pipeline.runner import Runner

if TYPE_CHECKING:
    import pandas as pd

READABLE = (Shards, RowData)
"""Data whose image files can be read once more, with what was noted about them."""
_BATCH = 256


def changed_pictures(runners: Sequence[Runner], table: pd.DataFrame) -> dict[str, Any]:
    """Counts of the pictures `compared` and `changed`, and of those `without` a hash; `examples` of the changed.

    table: a row per sample of the runners' parts, in their order: key, sha256.
    """
    counts: Counter[str] = Counter(compared=0, changed=0, without=0)
    examples: list[str] = []
    begin = 0
    for runner in runners:
        pairs = runner.value("clean")
        part = table.iloc[begin : begin + len(pairs)]
        begin += len(pairs)
        noted = [value.lower() if isinstance(value, str) else None for value in part["sha256"]]
        rows = np.array([row for row, value in enumerate(noted) if value is not None], np.int64)
        counts.update(compared=len(rows), without=len(pairs) - len(rows))
        for row, content in zip(rows.tolist(), _contents(runner.experiment.source, pairs, rows), strict=True):
            if content is None or hashlib.sha256(content).hexdigest() != noted[row]:
                counts["changed"] += 1
                examples += [str(part["key"].iloc[row])] if len(examples) < 5 else []
    return {**counts, "examples": examples}


def _contents(data: Any, pairs: Any, rows: np.ndarray) -> Iterator[bytes | None]:
    if isinstance(data, RowData):
        yield from data.contents(np.asarray(pairs.ids)[rows])
        return
    for begin in range(0, len(rows), _BATCH):
        yield from pairs.contents(rows[begin : begin + _BATCH])
