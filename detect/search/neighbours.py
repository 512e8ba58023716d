"""Neighbour tables: the scopes in which samples are searched. `detect.search.knn` measures the distances.

Each scope gives one table. A row of the table is a sample as it was searched; its neighbours are rows of the
same table, so that a detector can ask for its neighbours' own neighbourhoods:

    full       n rows, each searched among all others
    batch      random batches of `batch_size`; every sample is a query in exactly one. A last, short batch is
               filled up with samples of other batches, which are no queries there (extra rows)
    reference  the reference rows, searched among themselves, then the samples, searched among the reference
The modality says what a row is:

    image, text  that embedding of the sample
    joint        the image embedding; each sample's text embedding is a further row of its scope
    pair         the image and the text embedding side by side: the squares of both distances add up

Distances are Euclidean and, unless an approximate backend was asked for, exact. Ties go to the lower row.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from detect.embeddings import Embeddings, unit
from detect.search.candidates import APPROXIMATE, BACKENDS, choose
from detect.search.foreign_tables import checked_table, from_sparse
from detect.search.knn import Nearest, nearest

log = logging.getLogger(__name__)
VERSION = 1  # raised when a change to the search gives other tables
SCOPES = ("full", "batch", "reference")
MODALITIES = ("image", "text", "joint", "pair")


@dataclass(frozen=True)
class NeighbourSearch:
    """How to search, all but k; hashable, so that detectors that search alike share one table.

    backend: "torch" or "faiss" (exact), "ivf" or "hnsw" (approximate, by FAISS; the table gives their recall), or
        "auto": the fastest exact one on this machine.
    memory_mb: bound on the working memory of a search beside a copy of the embeddings, in megabytes. It changes no
        table, so searches that differ in it are equal.
    """

    scope: str = "full"
    batch_size: int = 2048
    modality: str = "image"
    normalise: bool = False
    backend: str = "auto"
    seed: int = 0
    memory_mb: int = field(default=256, compare=False)

    def __post_init__(self) -> None:
        for name, choices in (("scope", SCOPES), ("modality", MODALITIES), ("backend", BACKENDS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.backend not in ("auto", "torch") and find_spec("faiss") is None:
            raise ValueError(f"backend={self.backend} needs the package faiss-gpu or faiss-cpu")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2, got {self.batch_size}")
        if self.memory_mb < 1:
            raise ValueError(f"memory_mb must be at least 1, got {self.memory_mb}")

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that can change a table, as plain values: for the key of a stored table."""
        settings = asdict(self)
        del settings["memory_mb"]
        return settings

    def serves(self, width: int, k: int) -> bool:
        """Whether a table of this search that is `width` wide holds the table of the k nearest.

        An exact table does if it is wide enough; an approximate one of another width has other neighbours.
        """
        return width == k or (width > k and self.backend not in APPROXIMATE)


@dataclass(frozen=True)
class Neighbours:
    """A table of nearest neighbours with m rows (the module's docstring says which).

    distances: (m, k) float32, ascending, self excluded.  indices: (m, k) int64, rows of this table.
    queries: (n,) int64, the table row of each sample, in sample order.
    recall: share of the true neighbours in the table, measured on a sample of its rows; 1 for an exact search.
    """

    ARRAYS: ClassVar[tuple[str, ...]] = ("distances", "indices", "queries")

    distances: np.ndarray
    indices: np.ndarray
    queries: np.ndarray
    recall: float = 1.0

    @classmethod
    def from_arrays(cls, distances: Any, indices: Any, *, metric: str, embeddings: Any = None) -> Neighbours:
        """A table of scope "full" that faiss, scikit-learn or another library has searched: see `checked_table`.

        >>> from sklearn.neighbors import NearestNeighbors
        >>> x = np.random.default_rng(0).standard_normal((300, 8))
        >>> found = NearestNeighbors(n_neighbors=17).fit(x).kneighbors(x)  # of each sample, the first is itself
        >>> Neighbours.from_arrays(*found, metric="euclidean").k
        16
        """
        x = None if embeddings is None else Embeddings.of(embeddings).image
        found = checked_table(distances, indices, metric, x)
        return cls(*found, np.arange(len(found[0])))

    @classmethod
    def from_graph(cls, graph: Any, *, metric: str, embeddings: Any = None) -> Neighbours:
        """The same of a sparse matrix of scipy, (n, n), such as scikit-learn's `kneighbors_graph(mode="distance")`.

        cleanlab's `knn_graph` is one too, with metric="cosine" where embeddings have more than 3 dimensions.
        """
        return cls.from_arrays(*from_sparse(graph), metric=metric, embeddings=embeddings)

    @property
    def k(self) -> int:
        return self.distances.shape[1]

    def at(self, k: int) -> Neighbours:
        """The same table with the k nearest only."""
        if not 1 <= k <= self.k:
            raise ValueError(f"k must lie in 1..{self.k}, the width of this neighbour table, got {k}")
        return Neighbours(self.distances[:, :k], self.indices[:, :k], self.queries, self.recall)

    def save(self, folder: Path) -> None:
        for name in self.ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))
        shape = {"rows": len(self.distances), "k": self.k, "recall": self.recall}
        (folder / "shape.json").write_text(json.dumps(shape))

    @classmethod
    def load(cls, folder: Path) -> Neighbours:
        distances, indices, queries = (np.load(folder / f"{name}.npy") for name in cls.ARRAYS)
        recall = json.loads((folder / "shape.json").read_text()).get("recall", 1.0)
        return cls(distances, indices, queries, recall)


def find_neighbours(
    embeddings: Embeddings,
    k: int,
    search: NeighbourSearch,
    reference: Any = None,
    progress: Any = None,
    device: str | None = None,
) -> Neighbours:
    """The k nearest neighbours of every sample in its scope.

    reference: for scope "reference", embeddings (or an array) to search among.
    progress: (total, label) -> context manager with `update`, for long searches.
    device: where torch searches; None: on a GPU if there is one.
    Raises ValueError where a scope has too few rows for k.
    """
    points = _points(embeddings, search)  # (parts, n, d)
    reference_points = None
    if search.scope == "reference":
        if reference is None:
            raise ValueError("scope 'reference' needs a reference set: pass reference_set=...")
        reference_points = _points(Embeddings.of(reference), search)
    total = points.shape[0] * points.shape[1]
    rows = total if reference_points is None else reference_points.shape[0] * reference_points.shape[1]
    backend = search.backend
    if backend == "auto":
        scope = min(rows, points.shape[0] * search.batch_size) if search.scope == "batch" else rows
        backend, reason = choose(total, scope, reference_points is None, device)
        log.info("neighbours: %d rows, each among %d; backend %s, as %s", total, scope, backend, reason)
    steps = total if reference_points is None else total + rows
    with nullcontext() if progress is None else progress(steps, "neighbours") as bar:
        knn = _Knn(k, backend, search.memory_mb, None if bar is None else bar.update, device)
        if reference_points is not None:
            return _among_reference(points, reference_points, knn)
        if search.scope == "full":
            return _among_themselves(points, knn)
        return _in_batches(points, search, knn)


@dataclass(frozen=True)
class _Knn:
    """`nearest` with everything given but the rows."""

    k: int
    backend: str
    memory_mb: int
    update: Callable[[float], Any] | None
    device: str | None

    def check(self, rows: int, scope: str, exclude_self: bool = True) -> None:
        """ValueError if a scope of so many rows has fewer than k neighbours for each."""
        most = rows - exclude_self
        if not 1 <= self.k <= most:
            rule = f"in 1..{most} for a {scope} of {rows} rows" + (" (self excluded)" if exclude_self else "")
            raise ValueError(f"k must lie {rule}, got {self.k}")

    def __call__(self, queries: np.ndarray, base: np.ndarray, scope: str, *, exclude_self: bool = True) -> Nearest:
        """exclude_self: the queries are the rows of the base, and none is its own neighbour."""
        self.check(len(base), scope, exclude_self)
        return nearest(
            queries,
            base,
            self.k,
            self_rows=np.arange(len(base)) if exclude_self else None,
            backend=self.backend,
            memory_mb=self.memory_mb,
            progress=self.update,
            device=self.device,
        )


def _points(embeddings: Embeddings, search: NeighbourSearch) -> np.ndarray:
    """(parts, n, d): the images or the texts, for the joint modality both, for the pairs both in one row."""
    parts = [] if search.modality == "text" else [embeddings.image]
    if search.modality != "image":
        if embeddings.text is None:
            raise ValueError(f"modality {search.modality!r} needs text embeddings, and there are none")
        parts.append(embeddings.text)
    ready = [unit(part) if search.normalise else np.ascontiguousarray(part, np.float32) for part in parts]
    if search.modality == "pair":
        return np.concatenate(ready, axis=1)[None]
    return ready[0][None] if len(ready) == 1 else np.stack(ready)


def _among_themselves(points: np.ndarray, knn: _Knn) -> Neighbours:
    parts, n, d = points.shape
    flat = points.reshape(parts * n, d)
    found = knn(flat, flat, "scope")
    return Neighbours(found.distances, found.indices, np.arange(n), found.recall)


def _among_reference(points: np.ndarray, reference_points: np.ndarray, knn: _Knn) -> Neighbours:
    d = reference_points.shape[2]
    if points.shape[2] != d:
        raise ValueError(f"samples are {points.shape[2]} wide, the reference {d}; they must agree")
    base = reference_points.reshape(-1, d)
    among_reference = knn(base, base, "reference set")
    found = knn(points[0], base, "reference set", exclude_self=False)
    return Neighbours(
        np.concatenate([among_reference.distances, found.distances]),
        np.concatenate([among_reference.indices, found.indices]),
        len(base) + np.arange(points.shape[1]),
        min(among_reference.recall, found.recall),
    )


def _in_batches(points: np.ndarray, search: NeighbourSearch, knn: _Knn) -> Neighbours:
    parts, n, d = points.shape
    batches = list(batch_rows(n, search.batch_size, search.seed))
    size = parts * len(batches[0][0])  # rows of the table per batch
    knn.check(size, "batch")  # before a table of k columns is made
    distances = np.empty((len(batches) * size, knn.k), dtype=np.float32)
    indices = np.empty((len(batches) * size, knn.k), dtype=np.int64)
    queries = np.full(n, -1, dtype=np.int64)
    recalls = []
    for number, (rows, n_queries) in enumerate(batches):
        start = number * size
        flat = points[:, rows].reshape(size, d)
        found = knn(flat, flat, "batch")
        distances[start : start + size] = found.distances
        indices[start : start + size] = found.indices + start
        queries[rows[:n_queries]] = start + np.arange(n_queries)
        recalls.append(found.recall)
    if (queries < 0).any():
        raise AssertionError(f"{int((queries < 0).sum())} samples were left out of every batch")
    return Neighbours(distances, indices, queries, float(np.mean(recalls)))


def batch_rows(n: int, batch_size: int, seed: int) -> Iterator[tuple[np.ndarray, int]]:
    """Random batches of equal size: (rows, number of queries, which come first).

    Every row is a query once; a last, short batch is filled up with rows of other batches.
    """
    rng = np.random.default_rng(seed)
    order, size = rng.permutation(n), min(n, batch_size)
    for start in range(0, n, size):
        rows = order[start : start + size]
        n_queries = len(rows)
        if n_queries < size:
            filling = rng.choice(order[:start], size - n_queries, replace=False)
            rows = np.concatenate([rows, filling])
        yield rows, n_queries
