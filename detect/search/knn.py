"""The k nearest rows of a reference set, exactly: the only place with distances and with self-exclusion.

Candidates come from matrix products (of few pairs only, where the rows lie in groups: `detect.search.partition`),
which are quick and inexact; then every row that could still be among the k nearest is measured directly, coordinate
by coordinate. "Could still be" is a proof, not a guess. Let A be the product form of a squared distance between two
rows that were rounded by at most delta in all; then the true distance lies within

    sqrt((1 - rho) A - eps) - delta   and   sqrt((1 + rho) A + eps) + delta

where rho is the rounding of A itself and eps that of the sums in the product. The distance r to the worst of k
measured rows bounds the k-th neighbour's, and nothing farther from the centre than |x| + r can come nearer, so
only rows with A <= ((r + delta)^2 + eps) / (1 - rho) are of interest. Where the list of candidates ends before
that bound, the query is searched again among all rows, in float32 and without a list.

That proof is what allows the products to run in bfloat16 where the hardware is good at it: the rows are rounded
to 8 bits, three times as fast on one AVX-512 core, and the distances still come out as in float64 (to 1e-5,
near duplicates and far offsets included). Ties go to the lower row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from detect.search.bounds import Candidates, PreparedRows, norms
from detect.search.candidates import APPROXIMATE, CANDIDATE_SEARCHES, automatic

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

CACHED = 2**20  # bytes that stay in a core's cache


@dataclass(frozen=True)
class Nearest:
    """distances (q, k) float32, ascending; indices (q, k) int64; recall: share of true neighbours found."""

    distances: np.ndarray
    indices: np.ndarray
    recall: float = 1.0


@contextmanager
def _whole_sums() -> Iterator[None]:
    """Products of float32 are taken in float32 and those of bfloat16 summed in it, whatever the program has
    allowed elsewhere (TF32, partial sums in bfloat16): the proof counts on it."""
    import torch

    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    partial, precisions = cuda.allow_bf16_reduced_precision_reduction, [cuda.fp32_precision, cpu.fp32_precision]
    cuda.allow_bf16_reduced_precision_reduction = False
    cuda.fp32_precision = cpu.fp32_precision = "ieee"
    try:
        yield
    finally:
        cuda.allow_bf16_reduced_precision_reduction = partial
        cuda.fp32_precision, cpu.fp32_precision = precisions


@_whole_sums()
def nearest(
    queries: np.ndarray,
    base: np.ndarray,
    k: int,
    *,
    own: np.ndarray | None = None,
    backend: str = "torch",
    memory_mb: int = 256,
    progress: Callable[[float], Any] | None = None,
    device: str | None = None,
) -> Nearest:
    """The k nearest rows of `base` (m, d) to each of `queries` (q, d), float32.

    own: (q,) the row of `base` that a query itself is, which is left out; None if queries are no rows of it.
    memory_mb: bound on the working memory, beside one copy of `base`.  progress: told how many more queries
        are done, or what part of one that is.
    device: for backend "torch", such as "cpu"; None: a GPU if there is one.
    """
    import torch

    report = progress or (lambda done: None)
    where = torch.device((device or automatic()) if backend == "torch" else "cpu")
    search = Search(torch.as_tensor(base, device=where), k, memory_mb, report)
    points = search.base if queries is base else torch.as_tensor(queries, device=where)
    self_rows = None if own is None else torch.as_tensor(own, device=where)
    distances = torch.empty((len(points), k), device=where)
    indices = torch.empty((len(points), k), dtype=torch.int64, device=where)

    def put(rows: Any, nearest: tuple[Tensor, Tensor]) -> None:
        distances[rows], indices[rows] = nearest

    propose = CANDIDATE_SEARCHES[backend](search, self_rows is not None)
    for begin, end, found in propose(points):
        mine = None if self_rows is None else self_rows[begin:end]
        near, rows, unsure = search.rerank(points[begin:end], found, mine)
        put(slice(begin, end), (near, rows))
        again = unsure.nonzero().flatten()
        step = max(1, search.floats // (4 * len(base)))
        for part in again.split(step):
            left = None if mine is None else mine[part]
            put(begin + part, search.among_all(points[begin + part], near[part, -1], left))
        report((end - begin) * found.unreported)
    recall = 1.0
    if backend in APPROXIMATE:
        recall = _recall(search, points, self_rows, distances, indices)
        log.info("neighbours by %s: %.4f of the true ones found, by a sample", backend, recall)
    return Nearest(distances.cpu().numpy(), indices.cpu().numpy(), recall)


class Search(PreparedRows):
    """Measures candidates exactly."""

    def rerank(self, queries: Tensor, candidates: Candidates, own: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Measure the candidates that matter: distances (b, k), rows (b, k), and which queries are unsure (b,)."""
        import torch

        k, first = self.k, min(self.k + (own is not None), candidates.rows.shape[1])
        if candidates.approximate is None:
            first = candidates.rows.shape[1]
        exact = torch.full(candidates.rows.shape, torch.inf, device=queries.device)
        exact[:, :first] = self._measured(queries, candidates.rows[:, :first].clamp(min=0))
        out = candidates.rows < 0 if own is None else (candidates.rows < 0) | (candidates.rows == own[:, None])
        exact.masked_fill_(out, torch.inf)
        if candidates.approximate is None:
            near, rows = _by_distance(exact, candidates.rows)
            return near[:, :k], rows[:, :k], near[:, k - 1].isinf()
        kth_distance = exact[:, :first].kthvalue(k, dim=1).values
        norm = norms(queries - self.centre)
        bound = self.bound(norm, kth_distance, candidates)
        rest = candidates.approximate[:, first:] <= bound[:, None]
        rest &= ~out[:, first:]
        query, column = rest.nonzero(as_tuple=True)
        if len(query):
            column = column + first
            exact[query, column] = self._measured_pairs(queries, query, candidates.rows[query, column])
        near, rows = _by_distance(exact, candidates.rows)
        unsure = torch.zeros(len(queries), dtype=torch.bool, device=queries.device)
        if candidates.rows.shape[1] < len(self.base):
            unsure = candidates.approximate[:, -1] <= self.bound(norm, near[:, k - 1], candidates)
        return near[:, :k], rows[:, :k], unsure

    def among_all(self, queries: Tensor, kth_distance: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """The k nearest of all rows, given a bound on the k-th distance (inf if there is none)."""
        import torch

        part = queries - self.centre
        approximate = torch.addmm(self.square[None], part, self.centred.T, alpha=-2)
        norm = norms(part)
        approximate += norm.square()[:, None]
        bound = self.bound(norm, kth_distance)
        near = torch.empty((len(queries), self.k), device=queries.device)
        rows = torch.empty((len(queries), self.k), dtype=torch.int64, device=queries.device)
        for i in range(len(queries)):
            found = (approximate[i] <= bound[i]).nonzero().flatten()
            if own is not None:
                found = found[found != own[i]]
            exact = self._measured_pairs(queries, torch.full_like(found, i), found)
            exact, order = exact.sort(stable=True)
            near[i], rows[i] = exact[: self.k], found[order[: self.k]]
        return near, rows

    def _measured(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Distances (b, c) between queries (b, d) and their candidates (b, c), directly."""
        import torch

        out = torch.empty(rows.shape, device=queries.device)
        step = max(1, self._room() // (4 * self.d * rows.shape[1]))
        for begin in range(0, len(queries), step):
            some = rows[begin : begin + step]
            diff = self._gather(self.base, some.reshape(-1)).view(*some.shape, self.d)
            diff -= queries[begin : begin + step, None]
            torch.linalg.vector_norm(diff, dim=2, out=out[begin : begin + step])
        return out

    def _measured_pairs(self, queries: Tensor, query: Tensor, rows: Tensor) -> Tensor:
        """Distances (p,) between queries queries[query] and rows, directly."""
        import torch

        out = torch.empty(len(rows), device=queries.device)
        step = max(1, self._room() // (4 * self.d))
        for begin in range(0, len(rows), step):
            diff = self._gather(self.base, rows[begin : begin + step])
            diff -= queries[query[begin : begin + step]]
            torch.linalg.vector_norm(diff, dim=1, out=out[begin : begin + step])
        return out

    def _room(self) -> int:
        """Bytes that one step of direct measurement may use."""
        return CACHED if self.base.device.type == "cpu" else self.floats

    def _gather(self, source: Tensor, rows: Tensor) -> Tensor:
        """source[rows], into memory that is used again (fresh pages cost more than the copy)."""
        import torch

        kept = self.__dict__.get("_buffer")
        if kept is None or len(kept) < len(rows):
            kept = self._buffer = torch.empty((len(rows), self.d), device=source.device)
        return torch.index_select(source, 0, rows, out=kept[: len(rows)])


def _by_distance(exact: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Both by distance, ties by row."""
    rows, order = rows.sort(dim=1)
    exact, again = exact.gather(1, order).sort(dim=1, stable=True)
    return exact, rows.gather(1, again)


def _recall(
    search: Search, queries: Tensor, self_rows: Tensor | None, distances: Tensor, indices: Tensor, size: int = 256
) -> float:
    """Share of the true neighbours of `size` evenly spaced queries that were found."""
    import torch

    some = torch.linspace(0, len(queries) - 1, min(size, len(queries))).long().unique()
    hits = 0
    for part in some.split(32):
        _, true = search.among_all(
            queries[part], distances[part, -1], None if self_rows is None else self_rows[part]
        )
        hits += int((indices[part][:, :, None] == true[:, None, :]).any(dim=2).sum())
    return hits / (len(some) * search.k)
