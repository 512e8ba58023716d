"""The k nearest rows of a reference set, exactly: the only place with distances and with self-exclusion.

Candidates come from matrix products (of few pairs only, where the rows lie in groups: `detect.search.partition`),
which are quick and inexact; then every row that could still be among the k nearest is measured directly, coordinate
by coordinate. "Could still be" is a proof, not a guess. Let A be the product form of a squared distance between two
rows that were rounded by at most delta in all; then the true distance lies within

    sqrt((1 - rho) A - eps) - delta   and   sqrt((1 + rho) A + eps) + delta

where rho is the rounding of A itself and eps that of the sums in the product. The distance r to the worst of k
measured rows bounds the k-th neighbour's, and nothing farther from the centre than |x| + r can come nearer, so
only rows with A <= ((r + delta)^2 + eps) / (1 - rho) are of interest. Where the list of candidates ends before
that limit, the query is searched again among all rows, in float32 and without a list.

That proof is what allows the products to run in bfloat16 where the hardware is good at it: the rows are rounded
to 8 bits, three times as fast on one AVX-512 core, and the distances still come out as in float64 (to 1e-5,
near duplicates and far offsets included). Ties go to the lower row.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from detect.search.candidates import APPROXIMATE, FINDERS, Listed, automatic, lengths

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

    where = torch.device((device or automatic()) if backend == "torch" else "cpu")
    tell = progress or (lambda done: None)
    search = Search(torch.as_tensor(base, device=where), k, memory_mb, tell)
    asked = search.base if queries is base else torch.as_tensor(queries, device=where)
    selves = None if own is None else torch.as_tensor(own, device=where)
    distances = torch.empty((len(asked), k), device=where)
    indices = torch.empty((len(asked), k), dtype=torch.int64, device=where)

    def put(rows: Any, found: tuple[Tensor, Tensor]) -> None:
        distances[rows], indices[rows] = found

    finder = FINDERS[backend](search, selves is not None)
    for begin, end, listed in finder(asked):
        mine = None if selves is None else selves[begin:end]
        near, rows, unsure = search.settle(asked[begin:end], listed, mine)
        put(slice(begin, end), (near, rows))
        again = unsure.nonzero().flatten()
        step = max(1, search.floats // (4 * len(base)))
        for part in again.split(step):
            left = None if mine is None else mine[part]
            put(begin + part, search.among_all(asked[begin + part], near[part, -1], left))
        tell((end - begin) * listed.left)
    recall = 1.0
    if backend in APPROXIMATE:
        recall = _recall(search, asked, selves, distances, indices)
        log.info("neighbours by %s: %.4f of the true ones found, by a sample", backend, recall)
    return Nearest(distances.cpu().numpy(), indices.cpu().numpy(), recall)


class Search:
    """A reference set prepared for search; `tell` is told how many queries' worth of work is done."""

    def __init__(self, base: Tensor, k: int, memory_mb: int, tell: Callable[[float], Any]) -> None:
        import torch

        self.base, self.k, self.d, self.tell = base, k, base.shape[1], tell
        self.floats = memory_mb * 2**18
        # Distances do not change when all rows move, and products are finest around the origin.
        sums = torch.stack([part.double().sum(0) for part in base.split(4096)])
        self.centre = (sums.sum(0) / len(base)).float()
        # Sums of d products, kept by the kernels in at least 8 accumulators; and the centring itself.
        self.eps = 2.0**-24 * (self.d / 8 + 16)

    @functools.cached_property
    def centred(self) -> Tensor:
        return self.base - self.centre

    @functools.cached_property
    def square(self) -> Tensor:
        return lengths(self.centred).square_()

    def settle(self, asked: Tensor, listed: Listed, own: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Measure the candidates that matter: distances (b, k), rows (b, k), and which queries are unsure (b,)."""
        import torch

        k, first = self.k, min(self.k + (own is not None), listed.rows.shape[1])
        if listed.approximate is None:
            first = listed.rows.shape[1]
        exact = torch.full(listed.rows.shape, torch.inf, device=asked.device)
        exact[:, :first] = self._measured(asked, listed.rows[:, :first].clamp(min=0))
        out = listed.rows < 0 if own is None else (listed.rows < 0) | (listed.rows == own[:, None])
        exact.masked_fill_(out, torch.inf)
        if listed.approximate is None:
            near, rows = _sorted(exact, listed.rows)
            return near[:, :k], rows[:, :k], near[:, k - 1].isinf()
        reach = exact[:, :first].kthvalue(k, dim=1).values
        length = lengths(asked - self.centre)
        limit = self.limit(length, reach, listed)
        rest = listed.approximate[:, first:] <= limit[:, None]
        rest &= ~out[:, first:]
        query, column = rest.nonzero(as_tuple=True)
        if len(query):
            column = column + first
            exact[query, column] = self._measured_pairs(asked, query, listed.rows[query, column])
        near, rows = _sorted(exact, listed.rows)
        unsure = torch.zeros(len(asked), dtype=torch.bool, device=asked.device)
        if listed.rows.shape[1] < len(self.base):
            unsure = listed.approximate[:, -1] <= self.limit(length, near[:, k - 1], listed)
        return near[:, :k], rows[:, :k], unsure

    def among_all(self, asked: Tensor, reach: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """The k nearest of all rows, given a bound on the k-th distance (inf if there is none)."""
        import torch

        part = asked - self.centre
        approximate = torch.addmm(self.square[None], part, self.centred.T, alpha=-2)
        length = lengths(part)
        approximate += length.square()[:, None]
        limit = self.limit(length, reach)
        near = torch.empty((len(asked), self.k), device=asked.device)
        rows = torch.empty((len(asked), self.k), dtype=torch.int64, device=asked.device)
        for i in range(len(asked)):
            found = (approximate[i] <= limit[i]).nonzero().flatten()
            if own is not None:
                found = found[found != own[i]]
            exact = self._measured_pairs(asked, torch.full_like(found, i), found)
            exact, order = exact.sort(stable=True)
            near[i], rows[i] = exact[: self.k], found[order[: self.k]]
        return near, rows

    def limit(self, length: Tensor, reach: Tensor, listed: Listed | None = None) -> Tensor:
        """The largest A that a row within `reach` of a query may have, of queries (b,) that lie `length` from the
        centre; from float32 products unless `listed` tells otherwise. See the module's docstring."""
        farthest = length + reach
        eps = self.eps * (length.square() + farthest.square())
        if listed is None:
            return (reach.square() + eps) * (1 + 1e-6)
        delta = 0.0 if listed.lost is None else farthest * listed.lost_share + listed.lost
        return ((reach + delta).square() + eps) / (1 - listed.rho) * (1 + 1e-6)

    def _measured(self, asked: Tensor, rows: Tensor) -> Tensor:
        """Distances (b, c) between queries (b, d) and their candidates (b, c), directly."""
        import torch

        out = torch.empty(rows.shape, device=asked.device)
        step = max(1, self._room() // (4 * self.d * rows.shape[1]))
        for begin in range(0, len(asked), step):
            some = rows[begin : begin + step]
            apart = self._gather(self.base, some.reshape(-1)).view(*some.shape, self.d)
            apart -= asked[begin : begin + step, None]
            torch.linalg.vector_norm(apart, dim=2, out=out[begin : begin + step])
        return out

    def _measured_pairs(self, asked: Tensor, query: Tensor, rows: Tensor) -> Tensor:
        """Distances (p,) between queries asked[query] and rows, directly."""
        import torch

        out = torch.empty(len(rows), device=asked.device)
        step = max(1, self._room() // (4 * self.d))
        for begin in range(0, len(rows), step):
            apart = self._gather(self.base, rows[begin : begin + step])
            apart -= asked[query[begin : begin + step]]
            torch.linalg.vector_norm(apart, dim=1, out=out[begin : begin + step])
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


def _sorted(exact: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Both by distance, ties by row."""
    rows, order = rows.sort(dim=1)
    exact, again = exact.gather(1, order).sort(dim=1, stable=True)
    return exact, rows.gather(1, again)


def _recall(
    search: Search, asked: Tensor, selves: Tensor | None, distances: Tensor, indices: Tensor, size: int = 256
) -> float:
    """Share of the true neighbours of `size` evenly spaced queries that were found."""
    import torch

    some = torch.linspace(0, len(asked) - 1, min(size, len(asked))).long().unique()
    hits = 0
    for part in some.split(32):
        _, true = search.among_all(asked[part], distances[part, -1], None if selves is None else selves[part])
        hits += int((indices[part][:, :, None] == true[:, None, :]).any(dim=2).sum())
    return hits / (len(some) * search.k)
