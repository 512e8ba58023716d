"""Points among themselves by cells: exact, and most pairs are never multiplied where the data lie in groups.

Every row belongs to a cell with a centre. Between the centres a and b of two cells lies the plane of points equally
far from both, and

    h(x, b) = (|x - b|^2 - |x - a|^2) / (2 |a - b|)

is how far a row x of a's cell lies from it, on its own side. A row y of b's cell lies h(y, a) beyond it, so the two
are at least h(x, b) + h(y, a) apart. Where that is more than the distance to the k-th of some k rows, x need not be
compared with y; with the smallest h(y, a) of b's cell, x need not be compared with the whole cell. What is left is
multiplied in float32, and what may be among the k nearest is kept. That is right wherever the centres are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detect.search.tiles import CandidateTable

if TYPE_CHECKING:
    from torch import Tensor

    from detect.search.bounds import PreparedRows

CELLS = 3.0  # cells, times the root of the number of rows
SAMPLE = 20  # rows a cell for k-means
ROUNDS = 2  # of k-means: more cost what they save
FIRST = 200  # rows among which a first bound on the k-th distance is sought, at least


@dataclass(frozen=True)
class Partition:
    """Centres (c, d) of cells, their squared norms (c,), and the distances between them (c, c), inf to itself."""

    centres: Tensor
    square: Tensor
    separation: Tensor

    @classmethod
    def of(cls, search: PreparedRows) -> tuple[Partition, Tensor]:
        """Partition by k-means on a sample of the rows, and that sample; both about the search's centre."""
        import torch

        n = len(search.base)
        number = int(CELLS * n**0.5)
        drawn = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: SAMPLE * number]
        sample = search.base[drawn] - search.centre
        centres = sample[:number].clone()
        for _ in range(ROUNDS):
            square = centres.square().sum(dim=1)
            own = torch.addmm(square[None], sample, centres.T, alpha=-2).argmin(dim=1)
            count = torch.bincount(own, minlength=number)[:, None]
            sums = torch.zeros_like(centres).index_add_(0, own, sample)
            centres = torch.where(count > 0, sums / count.clamp(min=1), centres)
        separation = torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
        separation[separation == 0] = torch.inf  # of equal centres, too: there is no plane between them
        return cls(centres, centres.square().sum(dim=1), separation), sample

    def planes(self, rows: Tensor, eps: float, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The cell of each row, (b,), its nearest unless given, and its h to every other cell, (b, c), or less."""
        import torch

        h = torch.addmm(self.square[None], rows, self.centres.T, alpha=-2)
        own = h.argmin(dim=1) if own is None else own
        least = h.gather(1, own[:, None])[:, 0]
        # A product is off by eps (|x|^2 + |centre|^2) at most, and h holds two of them.
        least += 2 * eps * (rows.square().sum(dim=1) + self.square.max())
        h -= least[:, None]
        h /= (2 * self.separation)[own]
        return own, h

    def lower(self, least: Tensor, own: Tensor, h: Tensor) -> None:
        """Bring least[a, b] down to the smallest h(y, a) of rows y of cell b; for h (b, c) of cells `own`."""
        least.T.scatter_reduce_(0, own[:, None].expand_as(h), h, "amin")

    def share_left(self, sample: Tensor, queries: Tensor, kth_distance: Tensor, eps: float) -> float:
        """About what share of pairs is multiplied; by some rows (s, d) and the distance to their k-th, (s,)."""
        import torch

        own, h = self.planes(sample, eps)
        least = torch.full_like(self.separation, torch.inf)
        self.lower(least, own, h)
        share = torch.bincount(own, minlength=len(least)) / len(sample)
        own, h = self.planes(queries, eps)
        return float(((h + least[own] <= kth_distance[:, None]) * share).sum() / len(queries))


def among_partition(
    search: PreparedRows, cells: Partition, wanted: int, progress: Callable[[float], Any]
) -> CandidateTable:
    """Candidates of every row among all of them; where it has fewer than `wanted`, then rows of -1 and a bound.

    progress: told what share of the work was done since it was last told.
    """
    import torch

    n, eps = len(search.base), search.eps
    block = max(256, search.floats // (4 * len(cells.centres)))  # rows at once, for the memory bound
    own = torch.empty(n, dtype=torch.int64)
    least = torch.full_like(cells.separation, torch.inf)
    for begin in range(0, n, block):
        here = slice(begin, begin + block)
        own[here], h = cells.planes(search.base[here] - search.centre, eps)
        cells.lower(least, own[here], h)
    order = own.argsort(stable=True)
    own = own[order]
    points = SortedRows.of(search, order, torch.bincount(own, minlength=len(least)))
    bound = _first_bound(search, cells, points)
    kth_distance = bound.sqrt() * (1 + 1e-5)
    found = torch.full((n, wanted), -1, dtype=torch.int32)
    halves = torch.empty((n, wanted))
    for begin in range(0, n, block):
        here = slice(begin, begin + block)
        h = h[order] if block >= n else cells.planes(points.rows[here], eps, own[here])[1]
        h += least[own[here]]
        near = h <= kth_distance[here, None]
        near[torch.arange(len(near)), own[here]] = True
        row, column, products = _within(points, near, begin, bound, wanted, search.floats)
        at = order[here]
        filled = bound[here, None].repeat(1, wanted)
        rows_found = torch.full((len(at), wanted), -1, dtype=torch.int32)
        place = _place(row, len(at))
        fits = place < wanted
        filled[row[fits], place[fits]] = products[fits]
        rows_found[row[fits], place[fits]] = order[column[fits]].to(torch.int32)
        found[at], halves[at] = rows_found, filled / 2
        progress(len(at) / n)
    return CandidateTable(found, halves, torch.zeros(n), 0.0)


@dataclass(frozen=True)
class SortedRows:
    """Rows (n, d) about the centre, cell by cell; their squared norms (n,); and where each cell lies."""

    rows: Tensor
    square: Tensor
    spans: list[slice]

    @classmethod
    def of(cls, search: PreparedRows, order: Tensor, sizes: Tensor) -> SortedRows:
        rows = search.base[order]
        rows -= search.centre
        ends = sizes.cumsum(0).tolist()
        spans = [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
        return cls(rows, rows.square().sum(dim=1), spans)


def _first_bound(search: PreparedRows, cells: Partition, points: SortedRows) -> Tensor:
    """(n,) the largest A that one of the k nearest rows may have, from the cells around each row's own."""
    import torch

    k = search.k + 1  # and itself
    bound = torch.empty(len(points.rows))
    sizes = torch.tensor([span.stop - span.start for span in points.spans])
    around = cells.separation.clone().fill_diagonal_(0).argsort(dim=1)
    enough = (sizes[around].cumsum(dim=1) < max(FIRST, 4 * k)).sum(dim=1) + 1
    for cell, span in enumerate(points.spans):
        if span.start == span.stop:
            continue
        near = [points.spans[i] for i in around[cell, : enough[cell]].tolist()]
        others = torch.cat([points.rows[i] for i in near])
        square = torch.cat([points.square[i] for i in near])
        step = max(1, search.floats // (4 * len(others)))
        for begin in range(span.start, span.stop, step):
            here = slice(begin, min(begin + step, span.stop))
            products = torch.addmm(square[None], points.rows[here], others.T, alpha=-2)
            kth = products.kthvalue(k, dim=1).values + points.square[here]
            kth_distance = (kth + search.eps * (points.square[here] + square.max())).clamp(min=0).sqrt()
            bound[here] = search.bound(points.square[here].sqrt(), kth_distance)
    return bound


def _within(
    points: SortedRows, near: Tensor, begin: int, bound: Tensor, wanted: int, floats: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of a row, counted from `begin`, and a row of the cells that `near` (b, c) marks for it, with an A
    within the bound; and that A. By row, and by A within a row."""
    import torch

    cell, row = near.T.contiguous().nonzero(as_tuple=True)
    counts = torch.bincount(cell, minlength=len(points.spans)).tolist()
    buffer = torch.empty((max(counts), points.rows.shape[1]))
    # What the product lacks of A is the square of its row; the share of it makes up for this subtraction.
    bound = bound - points.square * (1 - 2.0**-22)
    rows, columns, kept = [], [], []
    for span, members in zip(points.spans, row.split(counts), strict=True):
        step = max(1, floats // (4 * max(1, span.stop - span.start)))
        for some in members.split(step) if span.stop > span.start else ():
            queries = torch.index_select(points.rows, 0, some + begin, out=buffer[: len(some)])
            products = torch.addmm(points.square[None, span], queries, points.rows[span].T, alpha=-2)
            one, other = (products <= bound[some + begin, None]).nonzero(as_tuple=True)
            if len(one) > wanted * len(some):  # copies of one another: no row can need so many
                products, other = (part.flatten() for part in products.topk(wanted, dim=1, largest=False))
                one = torch.arange(len(some)).repeat_interleave(wanted)
                kept.append(products)
            else:
                kept.append(products[one, other])
            rows.append(some[one])
            columns.append(other + span.start)
    row, column, product = torch.cat(rows), torch.cat(columns), torch.cat(kept)
    product, order = product.sort()
    row, again = row[order].sort(stable=True)
    order = order[again]
    return row, column[order], product[again] + points.square[row + begin]


def _place(row: Tensor, n: int) -> Tensor:
    """The place of each pair among those of its row, for rows in ascending order."""
    import torch

    count = torch.bincount(row, minlength=n)
    return torch.arange(len(row)) - (count.cumsum(0) - count)[row]
