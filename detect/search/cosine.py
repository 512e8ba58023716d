"""The most similar rows by cosine, from rows that come in blocks: for pages and groups, which show neighbours.

Detectors use `detect.search.knn`: its distances are measured, these cosines are products.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def most_similar(
    queries: np.ndarray, blocks: Iterable[tuple[int, np.ndarray]], k: int, excluded: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The k most similar rows of each query, or all if there are fewer: rows (k,) and cosines (k,), descending.

    queries: (q, d), unit length.  blocks: (first row, (b, d) unit length), in the order of the rows.
    excluded: for each query the rows that are left out, such as itself.  Of equals the lower row comes first.
    """
    best = np.zeros((len(queries), 0), np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    for first, block in blocks:
        cosines = queries @ block.T
        for i, out in enumerate(excluded):
            out = np.asarray(out)
            cosines[i, out[(out >= first) & (out < first + len(block))] - first] = -np.inf
        best = np.concatenate([best, cosines], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(np.arange(first, first + len(block)), cosines.shape)], axis=1)
        top = np.argsort(-best, axis=1, kind="stable")[:, :k]
        best, rows = np.take_along_axis(best, top, 1), np.take_along_axis(rows, top, 1)
    kept = best > -np.inf
    return [(rows[i, kept[i]], best[i, kept[i]]) for i in range(len(queries))]
