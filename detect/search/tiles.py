"""Half squared distances as one matrix product, and points among themselves for half of those products.

`extend` appends its square to each row, such that the product of two rows is ||x - y||^2 / 2. Among themselves, a
tile of products serves its rows and its columns; it is reduced to the minima of groups, and only groups below a
row's running threshold are looked at again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

TILE = 2048  # rows and columns of a tile, at least: products and their reduction stay in a core's cache
GROUP = 16  # products whose best stands for them
PIECES = 3  # bfloat16 numbers that together hold one float32
FAR = 1e30  # half the squared distance of a row that only fills up


@dataclass(frozen=True)
class CandidateTable:
    """Of each of n rows, the `wanted` others (and itself) with the smallest products.

    rows: (n, wanted) int32.  halves: (n, wanted) float32, half the squared distances by product, ascending; no row
    left out has less than the last.  rounding_error: (n,) how far rounding moved each row.
    share: of its norm, at most.
    """

    rows: Tensor
    halves: Tensor
    rounding_error: Tensor
    share: float


def extend(part: Tensor, out: Tensor, query: bool) -> Tensor:
    """Write rounded rows (b, d) and half their squares into `out`; how far rounding moved each row, (b,)."""
    import torch

    d = part.shape[1]
    out[:, :d] = part
    rounded = out[:, :d].to(torch.float32, copy=True)
    rest = torch.linalg.vector_norm(rounded, dim=1).square_().div_(2)
    squares, ones = (d + PIECES, d) if query else (d, d + PIECES)
    out[:, ones : ones + PIECES] = 1
    for piece in range(PIECES):
        out[:, squares + piece] = rest
        rest -= out[:, squares + piece]
    if not query:
        out[:, :d].neg_()
    return torch.linalg.vector_norm(rounded.sub_(part), dim=1)


def width(d: int) -> int:
    """Columns of an extended row: products run faster over whole vectors of the processor."""
    return -(-(d + 2 * PIECES) // 32) * 32


def tile_side(device: str) -> int:
    """Rows and columns of a tile, at least, on a kind of device."""
    return TILE if device == "cpu" else 8 * TILE


def among_themselves(
    base: Tensor, centre: Tensor, wanted: int, dtype: Any, progress: Callable[[float], Any]
) -> CandidateTable:
    """Candidates of every row of `base` (n, d) among all of them, from products in `dtype`.

    progress: told what share of the products was taken since it was last told.
    Rows are taken in random order: if they came sorted by what they show, they would meet all neighbours at once.
    """
    import torch

    n, d = base.shape
    device = base.device
    order = torch.from_numpy(np.random.default_rng(0).permutation(n)).to(device)
    padded = -(-max(n, wanted) // GROUP) * GROUP
    right = torch.zeros((padded, width(d)), dtype=dtype, device=device)
    rounding_error, share = torch.empty(n, device=device), 0.0
    for begin in range(0, n, 4096):
        rows = order[begin : begin + 4096]
        part = base[rows] - centre
        rounding_error[rows] = moved = extend(part, right[begin : begin + len(rows)], False)
        share = max(share, float((moved / torch.linalg.vector_norm(part, dim=1).clamp(min=1e-30)).max()))
    right[n:, d] = FAR
    right.neg_()  # products are minus half the squared distance from here on: larger is nearer

    def tile(rows: slice, columns: slice) -> Tensor:
        left = torch.zeros_like(right[rows])  # as `extend` would have made it for queries
        left[:, :d] = right[rows, :d]
        left[:, d : d + PIECES] = -right[rows, d + PIECES : d + 2 * PIECES]
        left[:, d + PIECES : d + 2 * PIECES] = -right[rows, d : d + PIECES]
        return left @ right[columns].T

    step = -(-max(tile_side(device.type), 2 * wanted) // GROUP) * GROUP
    count = max(1, padded // step)
    parts = [slice(step * i, step * (i + 1) if i + 1 < count else padded) for i in range(count)]
    best = RunningTopK(padded, wanted, device)
    each = 2 / (count * (count + 1))
    for part in parts:  # first of all a good threshold for every row
        best.begin(tile(part, part), part)
        progress(each)
    for one, other in itertools.combinations(parts, 2):
        keys = tile(one, other)
        best.rows(keys, one, other.start)
        best.columns(keys, other, one.start)
        progress(each)
    found = torch.empty((n, wanted), dtype=torch.int32, device=device)
    halves = torch.empty((n, wanted), device=device)
    for part in parts:
        columns, keys, bound = best.finish(part)
        rows = order[part]
        found[rows] = order[columns[: len(rows)].long().clamp(max=n - 1)].to(torch.int32)
        halves[rows] = -keys[: len(rows)]
        halves[rows, -1] = -bound[: len(rows)]
    return CandidateTable(found, halves, rounding_error, share)


class RunningTopK:
    """The best keys that each row has met so far, in a buffer somewhat longer than wanted."""

    def __init__(self, n: int, wanted: int, device: Any) -> None:
        import torch

        self.wanted, self.room = wanted, 2 * wanted + 32
        self.keys = torch.full((n, self.room), -torch.inf, device=device)
        self.found = torch.zeros((n, self.room), dtype=torch.int32, device=device)
        self.filled = torch.zeros(n, dtype=torch.int64, device=device)
        self.threshold = torch.full((n,), -torch.inf, device=device)
        self.rounding_error = torch.full((n,), -torch.inf, device=device)  # the best key that found no room

    def begin(self, tile: Tensor, here: slice) -> None:
        """The first tile of rows `here`, with themselves: a threshold that at least `wanted` of its keys pass."""
        m, size = tile.shape[1], GROUP
        while size > 1 and m // size < 2 * self.wanted:
            size //= 2
        maxima = tile.view(len(tile), size, m // size).amax(dim=1).float()
        lowest = maxima.topk(self.wanted, dim=1).values[:, -1]
        # Keys and thresholds must compare alike in the tile's own number format.
        self.threshold[here] = (lowest - lowest.abs() * 2.0**-6 - 1e-30).to(tile.dtype).float()
        self.rows(tile, here, here.start)

    def rows(self, tile: Tensor, here: slice, first: int) -> None:
        """Take in a tile whose rows are `here` and whose columns begin at `first`."""
        b, m = tile.shape
        groups = tile.view(b, GROUP, m // GROUP)  # a group is every (m / GROUP)-th column: quickest to reduce
        threshold = self.threshold[here]
        row, group = (groups.amax(dim=1) > threshold.to(tile.dtype)[:, None]).nonzero(as_tuple=True)
        self._take(here, row, group, groups[row, :, group].float(), m // GROUP, first)

    def columns(self, tile: Tensor, here: slice, first: int) -> None:
        """Take in a tile whose columns are `here` and whose rows begin at `first`."""
        b, m = tile.shape
        groups = tile.view(GROUP, b // GROUP, m)
        passed = groups.amax(dim=0) > self.threshold[here].to(tile.dtype)  # (b / GROUP, m)
        row, group = passed.T.contiguous().nonzero(as_tuple=True)
        self._take(here, row, group, groups[:, group, row].T.float(), b // GROUP, first)

    def _take(self, here: slice, row: Tensor, group: Tensor, keys: Tensor, stride: int, first: int) -> None:
        """Keep what passes the threshold among groups of keys (h, GROUP), of rows (h,) in ascending order."""
        import torch

        hit, member = (keys > self.threshold[here][row][:, None]).nonzero(as_tuple=True)
        row, column, key = row[hit], member * stride + group[hit] + first, keys[hit, member]
        count = torch.bincount(row, minlength=here.stop - here.start)
        if int((self.filled[here] + count).max()) > self.room:
            self._tighten(here)
            better = key > self.threshold[here][row]
            row, column, key = row[better], column[better], key[better]
            count = torch.bincount(row, minlength=here.stop - here.start)
        place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row] + self.filled[here][row]
        fits = place < self.room
        if not bool(fits.all()):
            self.rounding_error[here].scatter_reduce_(0, row[~fits], key[~fits], "amax")
            row, column, key, place = row[fits], column[fits], key[fits], place[fits]
        place += (row + here.start) * self.room
        self.keys.view(-1)[place] = key
        self.found.view(-1)[place] = column.to(torch.int32)
        self.filled[here] = (self.filled[here] + count).clamp_max(self.room)

    def _tighten(self, here: slice) -> None:
        best = self.keys[here].topk(self.wanted, dim=1)
        self.found[here, : self.wanted] = self.found[here].gather(1, best.indices)
        self.keys[here, : self.wanted] = best.values
        self.keys[here, self.wanted :] = float("-inf")
        self.filled[here] = self.filled[here].clamp_max(self.wanted)
        self.threshold[here] = self.threshold[here].maximum(best.values[:, -1])

    def finish(self, here: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Columns (b, wanted), their keys, descending, and the most that a key left out may be, (b,).

        That is the last key kept, or more where a row met more good keys at once than there was room for.
        """
        self._tighten(here)
        kept = slice(self.wanted)
        return (
            self.found[here, kept],
            self.keys[here, kept],
            self.threshold[here].maximum(self.rounding_error[here]),
        )
