"""Neighbour tables of other libraries, checked and converted."""

from __future__ import annotations

from typing import Any

import numpy as np

METRICS = ("euclidean", "sqeuclidean", "cosine")
CHECKED = 64
"""Rows whose distances are compared with embeddings, where these are given."""


def checked_table(
    distances: Any, indices: Any, metric: str, embeddings: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Distances (n, k) float32, Euclidean and ascending, and indices (n, k) int64, self left out.

    distances, indices: (n, k), a row for each sample, as faiss's `search` or scikit-learn's `kneighbors` give them.
        If every sample is its own neighbour, it is left out, and k is one less.
    metric: what the distances are: euclidean, sqeuclidean (faiss's METRIC_L2) or cosine (1 - cosine).
    embeddings: (n, d), to check some of the distances; None: distances are not checked.
    Raises ValueError, in one line, for anything that is no such table.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    distances, indices = np.asarray(distances), np.asarray(indices)
    if distances.ndim != 2 or distances.shape != indices.shape or not distances.size:
        raise ValueError(
            f"distances and indices must both be (n, k), got shapes {distances.shape} and {indices.shape}"
        )
    if indices.dtype.kind not in "iu" or distances.dtype.kind not in "fiu":
        raise ValueError(
            f"distances must be floats and indices integers, got {distances.dtype} and {indices.dtype}"
        )
    n = len(distances)
    _require("indices", indices, (indices < 0) | (indices >= n), f"lie in 0..{n - 1}, rows of these {n:,} samples")
    _require("distances", distances, ~np.isfinite(distances), "be finite")
    distances = distances.astype(np.float64)
    rounding = 1e-6 * max(float(np.abs(distances).max()), 1e-30)
    _require("distances", distances, distances < -rounding, "not be below 0: similarities are no distances")
    falls = np.pad(np.diff(distances, axis=1) < -rounding, ((0, 0), (1, 0)))
    _require("distances", distances, falls, "ascend in each row: similarities are no distances")
    distances, indices = _without_self(np.maximum(distances, 0), indices.astype(np.int64))
    ordered = np.sort(indices, axis=1)
    twice = np.pad(ordered[:, 1:] == ordered[:, :-1], ((0, 0), (1, 0)))
    _require("indices", ordered, twice, "name each neighbour once")
    distances = np.maximum.accumulate(_euclidean(distances, metric), axis=1)
    if embeddings is not None:
        _compare(distances, indices, embeddings, metric)
    return distances.astype(np.float32), indices


def from_sparse(graph: Any) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices (n, k) of a sparse matrix (n, n) with k stored distances in each row.

    Zeros count if they are stored, as scikit-learn's `kneighbors_graph(mode="distance")` does for duplicates.
    """
    from scipy.sparse import issparse

    if not issparse(graph) or graph.ndim != 2 or graph.shape[0] != graph.shape[1]:
        what = f"shape {graph.shape}" if hasattr(graph, "shape") else type(graph).__name__
        raise ValueError(f"graph must be a sparse matrix (n, n) of scipy, got {what}")
    table = graph.tocsr()
    n = table.shape[0]
    counts = np.diff(table.indptr)
    if not n or (counts != counts[0]).any() or not counts[0]:
        row = int(np.flatnonzero(counts != counts[0])[0]) if n and counts[0] else 0
        found = f"row 0 has {counts[0]}, row {row} has {counts[row]}" if n else "it has no rows"
        raise ValueError(f"graph must hold the same number of neighbours for every sample, but {found}")
    distances, indices = table.data.reshape(n, -1), table.indices.reshape(n, -1)
    if distances.shape[1] > 1 and (distances == 1).all():
        raise ValueError('graph holds nothing but ones; make it with kneighbors_graph(mode="distance")')
    order = np.lexsort((indices, distances))
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(indices, order, axis=1)


def _without_self(distances: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A table in which no sample is its own neighbour; one column narrower if samples were.

    Of more duplicates than k, some samples lack themselves: they lose their last neighbour, as far away as all.
    """
    n, k = indices.shape
    own = indices == np.arange(n)[:, None]
    held = own.any(axis=1)
    if not held.any():
        return distances, indices
    lacking = ~held & (distances[:, -1] > 0)
    if lacking.any():
        row, other = int(np.flatnonzero(lacking)[0]), int(np.flatnonzero(held)[0])
        raise ValueError(
            f"every sample or none must be its own neighbour, but row {other} holds itself, and row {row} does not"
        )
    if k == 1:
        raise ValueError("every sample has itself as its only neighbour: search one neighbour more")
    own[~held, -1] = True
    own &= np.cumsum(own, axis=1) == 1
    return distances[~own].reshape(n, k - 1), indices[~own].reshape(n, k - 1)


def _euclidean(distances: np.ndarray, metric: str) -> np.ndarray:
    if metric == "euclidean":
        return distances
    squares = 2 * distances if metric == "cosine" else distances  # of unit vectors |x - y|^2 = 2 - 2 cos
    return np.sqrt(squares)


def _compare(distances: np.ndarray, indices: np.ndarray, embeddings: np.ndarray, metric: str) -> None:
    """ValueError where the embeddings of some rows and their last neighbours are another distance apart."""
    x = np.asarray(embeddings, np.float64)
    if x.ndim != 2 or len(x) != len(distances):
        raise ValueError(f"embeddings must be ({len(distances)}, d), one per row of the table, got {x.shape}")
    if metric == "cosine":
        x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    for row in np.unique(np.linspace(0, len(x) - 1, CHECKED).astype(int)):
        true = float(np.linalg.norm(x[row] - x[indices[row, -1]]))
        if abs(true - distances[row, -1]) > 1e-2 * true + 1e-3 * float(np.linalg.norm(x[row])):
            raise ValueError(
                f"distances must fit metric={metric!r} and the embeddings, but row {row} and its neighbour "
                f"{indices[row, -1]} are {true:.4g} apart, and the table gives {distances[row, -1]:.4g}"
            )


def _require(name: str, table: np.ndarray, bad: np.ndarray, rule: str) -> None:
    """ValueError that names the first entry that breaks a rule."""
    if bad.any():
        row, column = map(int, np.argwhere(bad)[0])
        raise ValueError(f"{name} must {rule}, but row {row} has {table[row, column]:.6g} at column {column}")
