"""The k nearest rows of a base, exactly: the only place with distances and with self-exclusion.

Candidates come from matrix products, which are fast and inexact. Every row that could be among the k nearest is
then measured directly, coordinate by coordinate; equation (4) of docs/search.md says which could. Where a list of
candidates is too short for that by equation (5), the query is searched again among all rows. So products may run
in bfloat16, and distances are still accurate to 1e-5. Ties go to the lower row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from detect.search.bounds import Candidates, PreparedRows, norms
from detect.search.candidates import APPROXIMATE, CANDIDATE_SEARCHES, automatic, kernels
from detect.search.selection import sorted_by_distance
from detect.search.transfer import to_device, to_host

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
def _full_precision() -> Iterator[None]:
    """Take float32 products in float32 and sum bfloat16 ones in it, as equation (3) requires.

    A program may have allowed TF32 or partial sums in bfloat16; its settings come back afterwards.
    """
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


@_full_precision()
def nearest(
    queries: np.ndarray,
    base: np.ndarray,
    k: int,
    *,
    self_rows: np.ndarray | None = None,
    backend: str = "torch",
    memory_mb: int = 256,
    progress: Callable[[float], Any] | None = None,
    device: str | None = None,
) -> Nearest:
    """The k nearest rows of `base` (m, d) to each of `queries` (q, d), float32.

    self_rows: (q,) the row of `base` that each query is, which is left out; None if queries are no rows of it.
    memory_mb: bound on the working memory, beside one copy of `base`.
    progress: called with the number of queries that were answered since the last call; may be a fraction.
    device: for backend "torch", such as "cpu"; None: a GPU if there is one.
    """
    import torch

    report = progress or (lambda done: None)
    where = torch.device((device or automatic()) if backend == "torch" else "cpu")
    search = Search(to_device(base, where), k, memory_mb, report)
    points = search.base if queries is base else torch.as_tensor(queries, device=where)
    left_out = None if self_rows is None else torch.as_tensor(self_rows, device=where)
    distances = torch.empty((len(points), k), device=where)
    indices = torch.empty((len(points), k), dtype=torch.int64, device=where)
    find_candidates = CANDIDATE_SEARCHES[backend](search, left_out is not None)
    searched_again = 0
    for start, end, candidates in find_candidates(points):
        block = slice(start, end)
        distances[block], indices[block], incomplete = search.rerank(
            points[block], candidates, None if left_out is None else left_out[block]
        )
        again = start + incomplete.nonzero().flatten()
        searched_again += len(again)
        for rows in again.split(max(1, search.floats // (4 * len(base)))):
            distances[rows], indices[rows] = search.among_all(
                points[rows], distances[rows, -1], None if left_out is None else left_out[rows]
            )
        report((end - start) * candidates.unreported)
    log.debug("%d of %d queries were searched again among all rows", searched_again, len(points))
    recall = 1.0
    if backend in APPROXIMATE:
        recall = _recall(search, points, left_out, distances, indices)
        log.info("neighbours by %s: %.4f of the true ones found, by a sample", backend, recall)
    return Nearest(to_host(distances), to_host(indices), recall)


class Search(PreparedRows):
    """Measures candidates exactly."""

    def rerank(
        self, queries: Tensor, candidates: Candidates, self_rows: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The k nearest candidates of each query: distances (b, k), rows (b, k), and which queries are incomplete.

        Incomplete (b,): a row that is no candidate may be nearer than the k-th of these.
        """
        import torch

        k, first = self.k, min(self.k + (self_rows is not None), candidates.rows.shape[1])
        if candidates.approximate is None:
            first = candidates.rows.shape[1]
        exact = torch.full(candidates.rows.shape, torch.inf, device=queries.device)
        exact[:, :first] = self._distances(queries, candidates.rows[:, :first].clamp(min=0))
        excluded = candidates.rows < 0
        if self_rows is not None:
            excluded |= candidates.rows == self_rows[:, None]
        exact.masked_fill_(excluded, torch.inf)
        if candidates.approximate is None:
            near, rows = _by_distance(exact, candidates.rows)
            return near[:, :k], rows[:, :k], near[:, k - 1].isinf()
        kth_distance = exact[:, :first].kthvalue(k, dim=1).values
        norm = norms(queries - self.centre)
        bound = self.bound(norm, kth_distance, candidates)
        rest = candidates.approximate[:, first:] <= bound[:, None]  # equation (4)
        rest &= ~excluded[:, first:]
        query, column = rest.nonzero(as_tuple=True)
        if len(query):
            column = column + first
            exact[query, column] = self._pair_distances(queries, query, candidates.rows[query, column])
        near, rows = _by_distance(exact, candidates.rows)
        incomplete = torch.zeros(len(queries), dtype=torch.bool, device=queries.device)
        if candidates.rows.shape[1] < len(self.base):
            bound = self.bound(norm, near[:, k - 1], candidates)
            incomplete = candidates.approximate[:, -1] <= bound  # equation (5)
        return near[:, :k], rows[:, :k], incomplete

    def among_all(self, queries: Tensor, kth_distance: Tensor, self_rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """The k nearest of all rows, given an upper bound on the k-th distance (inf if there is none)."""
        import torch

        centred = queries - self.centre
        approximate = torch.addmm(self.square[None], centred, self.centred.T, alpha=-2)
        norm = norms(centred)
        approximate += norm.square()[:, None]
        bound = self.bound(norm, kth_distance)
        near = torch.empty((len(queries), self.k), device=queries.device)
        rows = torch.empty((len(queries), self.k), dtype=torch.int64, device=queries.device)
        for i in range(len(queries)):
            found = (approximate[i] <= bound[i]).nonzero().flatten()
            if self_rows is not None:
                found = found[found != self_rows[i]]
            exact = self._pair_distances(queries, torch.full_like(found, i), found)
            exact, order = exact.sort(stable=True)
            near[i], rows[i] = exact[: self.k], found[order[: self.k]]
        return near, rows

    def _distances(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Distances (b, c) between queries (b, d) and their candidates (b, c), directly."""
        import torch

        if kernels(self.base.device):
            query = torch.arange(len(queries), device=queries.device).repeat_interleave(rows.shape[1])
            return self._pair_distances(queries, query, rows.reshape(-1)).view(rows.shape)
        out = torch.empty(rows.shape, device=queries.device)
        step = max(1, self._step_bytes() // (4 * self.d * rows.shape[1]))
        for start in range(0, len(queries), step):
            block = rows[start : start + step]
            diff = self._gather(block.reshape(-1)).view(*block.shape, self.d)
            diff -= queries[start : start + step, None]
            torch.linalg.vector_norm(diff, dim=2, out=out[start : start + step])
        return out

    def _pair_distances(self, queries: Tensor, query: Tensor, rows: Tensor) -> Tensor:
        """Distances (p,) between queries[query] and the rows, directly."""
        import torch

        if device_kernels := kernels(self.base.device):
            return device_kernels.pair_distances(self.base, queries.contiguous(), query, rows)
        out = torch.empty(len(rows), device=queries.device)
        step = max(1, self._step_bytes() // (4 * self.d))
        for start in range(0, len(rows), step):
            diff = self._gather(rows[start : start + step])
            diff -= queries[query[start : start + step]]
            torch.linalg.vector_norm(diff, dim=1, out=out[start : start + step])
        return out

    def _step_bytes(self) -> int:
        """Bytes that one step of direct measurement may use."""
        return CACHED if self.base.device.type == "cpu" else self.floats

    def _gather(self, rows: Tensor) -> Tensor:
        """base[rows], into memory that is used again (fresh pages cost more than the copy)."""
        import torch

        buffer = self.__dict__.get("_buffer")
        if buffer is None or len(buffer) < len(rows):
            buffer = self._buffer = torch.empty((len(rows), self.d), device=self.base.device)
        return torch.index_select(self.base, 0, rows, out=buffer[: len(rows)])


def _by_distance(exact: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Both sorted by distance, ties by row."""
    if exact.device.type == "cpu":
        return sorted_by_distance(exact.contiguous(), rows)
    rows, order = rows.sort(dim=1)
    exact, by_distance = exact.gather(1, order).sort(dim=1, stable=True)
    return exact, rows.gather(1, by_distance)


def _recall(
    search: Search, queries: Tensor, self_rows: Tensor | None, distances: Tensor, indices: Tensor, size: int = 256
) -> float:
    """Share of the true neighbours of `size` evenly spaced queries that were found."""
    import torch

    sample = torch.linspace(0, len(queries) - 1, min(size, len(queries))).long().unique()
    hits = 0
    for part in sample.split(32):
        left_out = None if self_rows is None else self_rows[part]
        _, true = search.among_all(queries[part], distances[part, -1], left_out)
        hits += int((indices[part][:, :, None] == true[:, None, :]).any(dim=2).sum())
    return hits / (len(sample) * search.k)
