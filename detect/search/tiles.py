"""Search of all rows among themselves by tiles of a matrix product. Each tile serves its rows and its columns.

`extend` appends the square of each row, so that one product gives half of A: equation (6) of docs/search.md.
`RunningTopK` keeps the best products of every row; equation (7) bounds those that it drops.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from detect.search.bounds import norms

if TYPE_CHECKING:
    from torch import Tensor

TILE = 2048  # rows and columns of a tile, at least: a tile and its reduction fit in a core's cache
GROUP = 16  # products that are compared with the threshold together, by their best
PIECES = 3  # bfloat16 numbers that together hold one float32
FAR = 1e30  # half of A for rows that only pad


@dataclass(frozen=True)
class CandidateTable:
    """The c rows with the smallest A to each of n rows, itself among them.

    rows: (n, c) int32.  approximate: their A (n, c) float32, ascending; no other row has an A below the last.
    rounding_error: (n,) how far rounding moved each row; rounding_share: of its norm, at most.
    """

    rows: Tensor
    approximate: Tensor
    rounding_error: Tensor
    rounding_share: float


def extend(rows: Tensor, out: Tensor, query: bool) -> Tensor:
    """Write rows (b, d), rounded and extended as in equation (6), into `out` (b, extended_width(d)).

    query: whether they are the left factor of the product.  Returns how far rounding moved each row, (b,).
    """
    import torch

    d = rows.shape[1]
    out[:, :d] = rows
    rounded = out[:, :d].to(torch.float32, copy=True)
    rest = norms(rounded).square_().div_(2)
    squares, ones = (d + PIECES, d) if query else (d, d + PIECES)
    out[:, ones : ones + PIECES] = 1
    for piece in range(PIECES):
        out[:, squares + piece] = rest
        rest -= out[:, squares + piece]
    if not query:
        out[:, :d].neg_()
    return norms(rounded.sub_(rows))


def extend_centred(base: Tensor, centre: Tensor, out: Tensor, order: Tensor | None = None) -> tuple[Tensor, float]:
    """Extend all rows of `base` (n, d), in `order` if given, as right factors.

    Returns `rounding_error`, how far rounding moved each row of `base`, (n,), and `rounding_share`: equation (2).
    """
    import torch

    n = len(base)
    rounding_error, rounding_share = torch.empty(n, device=base.device), 0.0
    for start in range(0, n, 4096):
        here = slice(start, min(start + 4096, n))
        rows = here if order is None else order[here]
        centred = base[rows] - centre
        rounding_error[rows] = moved = extend(centred, out[here], False)
        rounding_share = max(rounding_share, float((moved / norms(centred).clamp(min=1e-30)).max()))
    return rounding_error, rounding_share * (1 + rounding_share)  # a rounded row may have a larger norm


def extended_width(d: int) -> int:
    """Columns of an extended row: products are faster if they fill whole vectors of the processor."""
    return -(-(d + 2 * PIECES) // 32) * 32


def tile_side(device_type: str) -> int:
    """Rows and columns of a tile, at least."""
    return TILE if device_type == "cpu" else 8 * TILE


def tile_candidates(
    base: Tensor, centre: Tensor, n_candidates: int, dtype: Any, progress: Callable[[float], Any]
) -> CandidateTable:
    """Candidates of every row of `base` (n, d) among all of them, from products in `dtype`.

    progress: called with the share of the products that were taken since the last call.
    Rows are taken in random order: sorted ones would meet all their neighbours in one tile, more than fit.
    """
    import torch

    n, d = base.shape
    device = base.device
    order = torch.from_numpy(np.random.default_rng(0).permutation(n)).to(device)
    padded = -(-max(n, n_candidates) // GROUP) * GROUP
    right = torch.zeros((padded, extended_width(d)), dtype=dtype, device=device)
    rounding_error, rounding_share = extend_centred(base, centre, right, order)
    right[n:, d] = FAR
    right.neg_()  # from here on a product is minus half of A: the larger, the nearer

    def tile(rows: slice, columns: slice) -> Tensor:
        left = torch.zeros_like(right[rows])  # what `extend` would write for queries
        left[:, :d] = right[rows, :d]
        left[:, d : d + PIECES] = -right[rows, d + PIECES : d + 2 * PIECES]
        left[:, d + PIECES : d + 2 * PIECES] = -right[rows, d : d + PIECES]
        return left @ right[columns].T

    best = RunningTopK(padded, n_candidates, device)
    sides = _sides(padded, -(-max(tile_side(device.type), 2 * n_candidates) // GROUP) * GROUP)
    share = 2 / (len(sides) * (len(sides) + 1))  # of the products, in one tile
    for side in sides:  # the diagonal first: it gives every row a good threshold
        best.start(tile(side, side), side)
        progress(share)
    for one, other in itertools.combinations(sides, 2):
        products = tile(one, other)
        best.add_rows(products, one, other.start)
        best.add_columns(products, other, one.start)
        progress(share)
    found = torch.empty((n, n_candidates), dtype=torch.int32, device=device)
    approximate = torch.empty((n, n_candidates), device=device)
    for side in sides:
        columns, products, largest_dropped = best.finish(side)
        rows = order[side]
        found[rows] = order[columns[: len(rows)].long().clamp(max=n - 1)].to(torch.int32)
        approximate[rows] = -2 * products[: len(rows)]
        approximate[rows, -1] = -2 * largest_dropped[: len(rows)]
    return CandidateTable(found, approximate, rounding_error, rounding_share)


def _sides(n: int, side: int) -> list[slice]:
    """n rows in tiles' sides of `side` rows; the last one is up to twice as long."""
    count = max(1, n // side)
    return [slice(side * i, side * (i + 1) if i + 1 < count else n) for i in range(count)]


def position_in_row(row: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """For pairs (p,) sorted by their row, of n: the place of each among those of its row (p,), and the pairs of
    each row (n,)."""
    import torch

    count = torch.bincount(row, minlength=n)
    return torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row], count


class RunningTopK:
    """The largest products that each of n rows met so far, and their columns.

    Each row has a buffer of somewhat more than twice `k`. A product enters it if it is above the row's threshold,
    which rises to the k-th best when the buffer is full.
    """

    def __init__(self, n: int, k: int, device: Any) -> None:
        import torch

        self.k, self.capacity = k, 2 * k + 32
        self.products = torch.full((n, self.capacity), -torch.inf, device=device)
        self.found = torch.zeros((n, self.capacity), dtype=torch.int32, device=device)
        self.filled = torch.zeros(n, dtype=torch.int64, device=device)
        self.threshold = torch.full((n,), -torch.inf, device=device)
        self.overflow = torch.full((n,), -torch.inf, device=device)  # the best product that found no room

    def start(self, tile: Tensor, here: slice) -> None:
        """Add the first tile of rows `here`, with themselves; at least k of its products pass the threshold."""
        m, size = tile.shape[1], GROUP
        while size > 1 and m // size < 2 * self.k:
            size //= 2
        maxima = tile.view(len(tile), size, m // size).amax(dim=1).float()
        lowest = maxima.topk(self.k, dim=1).values[:, -1]
        # The threshold is rounded to the tile's number format, so that a product compares with it as it does here.
        self.threshold[here] = (lowest - lowest.abs() * 2.0**-6 - 1e-30).to(tile.dtype).float()
        self.add_rows(tile, here, here.start)

    def add_rows(self, tile: Tensor, here: slice, first: int) -> None:
        """Add a tile whose rows are `here` and whose columns begin at `first`."""
        b, m = tile.shape
        groups = tile.view(b, GROUP, m // GROUP)  # a group is every (m / GROUP)-th column: quickest to reduce
        passed = groups.amax(dim=1) > self.threshold[here].to(tile.dtype)[:, None]
        row, group = passed.nonzero(as_tuple=True)
        self._add(here, row, group, groups[row, :, group].float(), m // GROUP, first)

    def add_columns(self, tile: Tensor, here: slice, first: int) -> None:
        """Add a tile whose columns are `here` and whose rows begin at `first`."""
        b, m = tile.shape
        groups = tile.view(GROUP, b // GROUP, m)
        passed = groups.amax(dim=0) > self.threshold[here].to(tile.dtype)  # (b / GROUP, m)
        row, group = passed.T.contiguous().nonzero(as_tuple=True)
        self._add(here, row, group, groups[:, group, row].T.float(), b // GROUP, first)

    def _add(self, here: slice, row: Tensor, group: Tensor, products: Tensor, stride: int, first: int) -> None:
        """Keep what is above the threshold among groups of products (h, GROUP) of rows (h,), ascending."""
        hit, member = (products > self.threshold[here][row][:, None]).nonzero(as_tuple=True)
        row, column, product = row[hit], member * stride + group[hit] + first, products[hit, member]
        position, count = position_in_row(row, here.stop - here.start)
        if int((self.filled[here] + count).max()) > self.capacity:
            self._tighten(here)
            better = product > self.threshold[here][row]
            row, column, product = row[better], column[better], product[better]
            position, count = position_in_row(row, here.stop - here.start)
        position += self.filled[here][row]
        fits = position < self.capacity
        if not bool(fits.all()):
            self.overflow[here].scatter_reduce_(0, row[~fits], product[~fits], "amax")
            row, column, product, position = row[fits], column[fits], product[fits], position[fits]
        position += (row + here.start) * self.capacity
        self.products.view(-1)[position] = product
        self.found.view(-1)[position] = column.int()
        self.filled[here] = (self.filled[here] + count).clamp_max(self.capacity)

    def _tighten(self, here: slice) -> None:
        """Keep the k best of rows `here`, and raise their threshold to the k-th."""
        best = self.products[here].topk(self.k, dim=1)
        self.found[here, : self.k] = self.found[here].gather(1, best.indices)
        self.products[here, : self.k] = best.values
        self.products[here, self.k :] = float("-inf")
        self.filled[here] = self.filled[here].clamp_max(self.k)
        self.threshold[here] = self.threshold[here].maximum(best.values[:, -1])

    def finish(self, here: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Columns (b, k) of rows `here`, their products, descending, and a bound on every product left out, (b,).

        The bound is the k-th product, or more where a row met more good ones at once than fitted: equation (7).
        """
        self._tighten(here)
        kept = slice(self.k)
        return self.found[here, kept], self.products[here, kept], self.threshold[here].maximum(self.overflow[here])
