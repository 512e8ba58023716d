"""Exact search of all rows among themselves by the cells of a partition; rows of far cells are not multiplied.

Every row belongs to the cell of its nearest centre. The plane between two centres, the distance h of a row to it
and the smallest h of a cell, `least`, are defined in docs/search.md; equation numbers are those of that page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detect.search.tiles import CandidateTable, position_in_row

if TYPE_CHECKING:
    from torch import Tensor

    from detect.search.bounds import PreparedRows

CELLS = 3.0  # cells, divided by the root of the number of rows
SAMPLE = 20  # rows a cell for k-means
ROUNDS = 2  # of k-means: more cost what they save
FIRST_ROWS = 200  # rows among which a first bound on the k-th distance is sought, at least


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
            cell = torch.addmm(square[None], sample, centres.T, alpha=-2).argmin(dim=1)
            count = torch.bincount(cell, minlength=number)[:, None]
            sums = torch.zeros_like(centres).index_add_(0, cell, sample)
            centres = torch.where(count > 0, sums / count.clamp(min=1), centres)
        separation = torch.cdist(centres, centres, compute_mode="donot_use_mm_for_euclid_dist")
        separation[separation == 0] = torch.inf  # no plane lies between equal centres
        return cls(centres, centres.square().sum(dim=1), separation), sample

    def planes(self, rows: Tensor, eps: float, cell: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The cell of each row, (b,), that of the nearest centre unless given, and lower bounds on its h, (b, c).

        Equation (8), to every other cell's plane.
        """
        import torch

        h = torch.addmm(self.square[None], rows, self.centres.T, alpha=-2)
        cell = h.argmin(dim=1) if cell is None else cell
        to_own = h.gather(1, cell[:, None])[:, 0]
        # h is the difference of two products, each off by eps (|x|^2 + |centre|^2) at most: equation (3).
        to_own += 2 * eps * (rows.square().sum(dim=1) + self.square.max())
        h -= to_own[:, None]
        h /= (2 * self.separation)[cell]
        return cell, h

    def lower(self, least: Tensor, cell: Tensor, h: Tensor) -> None:
        """Lower least[a, b] to the smallest h to the plane of cell a among rows of cell b; h (b, c) of rows in
        `cell` (b,)."""
        least.T.scatter_reduce_(0, cell[:, None].expand_as(h), h, "amin")

    def share_left(self, sample: Tensor, queries: Tensor, kth_distance: Tensor, eps: float) -> float:
        """Estimated share of pairs that equation (10) leaves; from queries (s, d) and their k-th distance, (s,)."""
        import torch

        cell, h = self.planes(sample, eps)
        least = torch.full_like(self.separation, torch.inf)
        self.lower(least, cell, h)
        share = torch.bincount(cell, minlength=len(least)) / len(sample)
        cell, h = self.planes(queries, eps)
        return float(((h + least[cell] <= kth_distance[:, None]) * share).sum() / len(queries))


def partition_candidates(
    search: PreparedRows, cells: Partition, n_candidates: int, progress: Callable[[float], Any]
) -> CandidateTable:
    """Candidates of every row among all of them; a list with fewer rows ends with rows of -1 at A = bound.

    progress: called with the share of the work that was done since the last call.
    """
    import torch

    n, eps = len(search.base), search.eps
    step = max(256, search.floats // (4 * len(cells.centres)))  # rows at once, for the memory bound
    cell = torch.empty(n, dtype=torch.int64)
    least = torch.full_like(cells.separation, torch.inf)
    for start in range(0, n, step):
        here = slice(start, start + step)
        cell[here], h = cells.planes(search.base[here] - search.centre, eps)
        cells.lower(least, cell[here], h)
    order = cell.argsort(stable=True)
    cell = cell[order]
    points = SortedRows.of(search, order, torch.bincount(cell, minlength=len(least)))
    bound = _first_bound(search, cells, points)
    kth_distance = bound.sqrt() * (1 + 1e-5)
    found = torch.full((n, n_candidates), -1, dtype=torch.int32)
    approximate = torch.empty((n, n_candidates))
    for start in range(0, n, step):
        here = slice(start, start + step)
        h = h[order] if step >= n else cells.planes(points.rows[here], eps, cell[here])[1]
        h += least[cell[here]]
        compared = h <= kth_distance[here, None]  # the others are too far by equation (10)
        compared[torch.arange(len(compared)), cell[here]] = True
        row, column, products = _pairs_within_bound(points, compared, start, bound, n_candidates, search.floats)
        position, _ = position_in_row(row, len(compared))
        fits = position < n_candidates
        row, column, products, position = row[fits], column[fits], products[fits], position[fits]
        rows_found = torch.full((len(compared), n_candidates), -1, dtype=torch.int32)
        rows_found[row, position] = order[column].int()
        filled = bound[here, None].repeat(1, n_candidates)
        filled[row, position] = products
        found[order[here]], approximate[order[here]] = rows_found, filled
        progress(len(compared) / n)
    return CandidateTable(found, approximate, torch.zeros(n), 0.0)


@dataclass(frozen=True)
class SortedRows:
    """Rows (n, d) about the centre, sorted by cell; their squared norms (n,); the span of each cell, (c,)."""

    rows: Tensor
    square: Tensor
    spans: list[slice]

    @classmethod
    def of(cls, search: PreparedRows, order: Tensor, sizes: Tensor) -> SortedRows:
        rows = search.base[order]
        rows -= search.centre
        ends = sizes.cumsum(0).tolist()
        spans = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        return cls(rows, rows.square().sum(dim=1), spans)


def _first_bound(search: PreparedRows, cells: Partition, points: SortedRows) -> Tensor:
    """(n,) the largest A that one of the k nearest rows may have, from the cells around each row's own.

    The k-th smallest A among some rows gives a distance by equation (3), and that a bound by equation (4).
    """
    import torch

    k = search.k + 1  # the row itself is among them
    bound = torch.empty(len(points.rows))
    sizes = torch.tensor([span.stop - span.start for span in points.spans])
    around = cells.separation.clone().fill_diagonal_(0).argsort(dim=1)
    enough = (sizes[around].cumsum(dim=1) < max(FIRST_ROWS, 4 * k)).sum(dim=1) + 1
    for cell, span in enumerate(points.spans):
        if span.start == span.stop:
            continue
        nearby = [points.spans[i] for i in around[cell, : enough[cell]].tolist()]
        others = torch.cat([points.rows[i] for i in nearby])
        square = torch.cat([points.square[i] for i in nearby])
        step = max(1, search.floats // (4 * len(others)))
        for start in range(span.start, span.stop, step):
            here = slice(start, min(start + step, span.stop))
            products = torch.addmm(square[None], points.rows[here], others.T, alpha=-2)
            kth = products.kthvalue(k, dim=1).values + points.square[here]
            kth_distance = (kth + search.eps * (points.square[here] + square.max())).clamp(min=0).sqrt()
            bound[here] = search.bound(points.square[here].sqrt(), kth_distance)
    return bound


def _pairs_within_bound(
    points: SortedRows, compared: Tensor, first: int, bound: Tensor, n_candidates: int, floats: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of rows (p,), columns (p,), and their A (p,) where it is within the bound; by row, then by A.

    compared: (b, c) which cells the rows from `first` on are compared with. Rows are counted from `first`.
    """
    import torch

    cell, row = compared.T.contiguous().nonzero(as_tuple=True)
    counts = torch.bincount(cell, minlength=len(points.spans)).tolist()
    buffer = torch.empty((max(counts), points.rows.shape[1]))
    # Products lack the square of their row, so it is taken off the bound: not all of it, as this rounds, too.
    bound = bound - points.square * (1 - 2.0**-22)
    rows, columns, kept = [], [], []
    for span, members in zip(points.spans, row.split(counts), strict=True):
        step = max(1, floats // (4 * max(1, span.stop - span.start)))
        for block in members.split(step) if span.stop > span.start else ():
            queries = torch.index_select(points.rows, 0, block + first, out=buffer[: len(block)])
            products = torch.addmm(points.square[None, span], queries, points.rows[span].T, alpha=-2)
            query, column = (products <= bound[block + first, None]).nonzero(as_tuple=True)
            if len(query) > n_candidates * len(block):  # many copies of one row: no list needs more than it holds
                products, column = (x.flatten() for x in products.topk(n_candidates, dim=1, largest=False))
                query = torch.arange(len(block)).repeat_interleave(n_candidates)
                kept.append(products)
            else:
                kept.append(products[query, column])
            rows.append(block[query])
            columns.append(column + span.start)
    row, column, product = torch.cat(rows), torch.cat(columns), torch.cat(kept)
    product, by_product = product.sort()
    row, by_row = row[by_product].sort(stable=True)
    return row, column[by_product[by_row]], product[by_row] + points.square[row + first]
