"""The search of all rows among themselves on a GPU: tiles of a product, filtered by Triton kernels.

The algorithm is that of `tiles.py`, with equation (7) of docs/search.md. Each tile is multiplied by the library's
bfloat16 product with float32 results, which leaves little to filter wrongly: half of A is rounded to float32 only.
One kernel reads the tile once and appends what is above a row's or a column's threshold to that row's list; another
raises the thresholds. Rows come in random order. So a list whose threshold is the c-th best of s rows gains about c
more from the next s rows, and it is enough to raise thresholds whenever the rows seen have doubled: nothing waits
for the GPU. A list that overflows all the same remembers the best that it lost.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from detect.search.bounds import norms
from detect.search.tiles import CandidateTable

MOST_ROWS = 16384  # in a tile's side
BLOCK = {"ROWS": 8, "COLUMNS": 128, "num_warps": 4, "maxnreg": 64}  # of a tile, for one program of `_filter`
LISTS = 1  # that one program tightens
PAIRS = 16  # whose distances one program measures


@triton.jit
def _append(hit, owner, other, value, filled, overflow, products, found, capacity):
    """Append `value` and `other` to the list of `owner` where `hit`; all of one shape."""
    position = tl.atomic_add(filled + owner, 1, mask=hit, sem="relaxed")
    fits = hit & (position < capacity)
    place = owner.to(tl.int64) * capacity + position
    tl.store(products + place, value, mask=fits)
    tl.store(found + place, other, mask=fits)
    tl.atomic_max(overflow + owner, value, mask=hit & (position >= capacity), sem="relaxed")


@triton.jit(do_not_specialize=["n_rows", "first_row", "first_column"])
def _filter(
    tile,
    stride,
    n_rows,
    n_columns,
    first_row,
    first_column,
    half_square,
    threshold,
    filled,
    overflow,
    products,
    found,
    capacity,
    COLUMNS_TOO: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Append the products of a tile that pass their row's threshold and, if COLUMNS_TOO, their column's."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    in_rows, in_columns = row < n_rows, column < n_columns
    inside = in_rows[:, None] & in_columns[None, :]
    half = tl.load(tile + row[:, None] * stride + column[None, :], mask=inside, other=float("-inf"))
    row, column = row + first_row, column + first_column
    half -= tl.load(half_square + column, mask=in_columns, other=0.0)[None, :]
    half -= tl.load(half_square + row, mask=in_rows, other=0.0)[:, None]  # minus half of A
    by_row = half > tl.load(threshold + row, mask=in_rows, other=float("inf"))[:, None]
    either = by_row
    if COLUMNS_TOO:
        by_column = half > tl.load(threshold + column, mask=in_columns, other=float("inf"))[None, :]
        either = by_row | by_column
    if tl.max(either.to(tl.int32)) > 0:
        x = tl.broadcast_to(row[:, None], (ROWS, COLUMNS))
        y = tl.broadcast_to(column[None, :], (ROWS, COLUMNS))
        _append(by_row, x, y, half, filled, overflow, products, found, capacity)
        if COLUMNS_TOO:
            _append(by_column, y, x, half, filled, overflow, products, found, capacity)


@triton.jit(do_not_specialize=["first", "last", "k"])
def _tighten(threshold, filled, products, found, first, last, k, capacity, LISTS: tl.constexpr, SIZE: tl.constexpr):
    """Keep the k best of the lists first..last - 1, and raise each threshold to the k-th."""
    row = first + tl.program_id(0) * LISTS + tl.arange(0, LISTS)
    here = row < last
    count = tl.minimum(tl.load(filled + row, mask=here, other=0), capacity)
    place = tl.arange(0, SIZE)[None, :]
    listed = place < count[:, None]
    start = row.to(tl.int64)[:, None] * capacity
    value = tl.load(products + start + place, mask=listed, other=float("-inf"))
    other = tl.load(found + start + place, mask=listed, other=0)
    bits = value.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers that sort like the numbers
    # The k-th largest key, bit by bit: the largest number that k keys reach.
    kth = tl.where(tl.sum((key >= 0).to(tl.int32), axis=1) >= k, 0, -2147483648).to(tl.int32)
    for step in range(31):
        higher = kth + (1 << (30 - step))
        kth = tl.where(tl.sum((key >= higher[:, None]).to(tl.int32), axis=1) >= k, higher, kth)
    better, equal = (key > kth[:, None]) & listed, (key == kth[:, None]) & listed
    room = k - tl.sum(better.to(tl.int32), axis=1)
    keep = better | (equal & (tl.cumsum(equal.to(tl.int32), axis=1) <= room[:, None]))
    target = start + tl.cumsum(keep.to(tl.int32), axis=1) - 1
    tl.store(products + target, value, mask=keep)
    tl.store(found + target, other, mask=keep)
    tl.store(filled + row, tl.sum(keep.to(tl.int32), axis=1), mask=here)
    worst = (kth ^ ((kth >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    before = tl.load(threshold + row, mask=here, other=0.0)
    tl.store(threshold + row, tl.where(count >= k, tl.maximum(worst, before), before), mask=here)


@triton.jit(do_not_specialize=["count"])
def _measure(base, queries, query, rows, out, count, d, SIZE: tl.constexpr, PART: tl.constexpr):
    """Distances between queries[query] and base[rows], in float32."""
    pair = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    here = pair < count
    one = tl.load(query + pair, mask=here, other=0).to(tl.int64)[:, None] * d
    other = tl.load(rows + pair, mask=here, other=0).to(tl.int64)[:, None] * d
    total = tl.zeros((SIZE, PART), tl.float32)
    for start in range(0, d, PART):
        column = start + tl.arange(0, PART)[None, :]
        inside = here[:, None] & (column < d)
        diff = tl.load(base + other + column, mask=inside, other=0.0)
        diff -= tl.load(queries + one + column, mask=inside, other=0.0)
        total += diff * diff
    tl.store(out + pair, tl.sqrt_rn(tl.sum(total, axis=1)), mask=here)


def pair_distances(base: Tensor, queries: Tensor, query: Tensor, rows: Tensor) -> Tensor:
    """Distances (p,) between queries[query] and base[rows]; base and queries are (., d) float32, contiguous."""
    out = torch.empty(len(rows), device=base.device)
    if len(rows):
        grid = (triton.cdiv(len(rows), PAIRS),)
        _measure[grid](base, queries, query, rows, out, len(rows), base.shape[1], SIZE=PAIRS, PART=128)
    return out


class _Lists:
    """A list of at least the `k` largest products of each of n rows; how many rows each list has met."""

    def __init__(self, half_square: Tensor, k: int) -> None:
        n, device = len(half_square), half_square.device
        self.k, self.capacity, self.half_square = k, capacity(k), half_square
        self.products = torch.empty((n, self.capacity), device=device)
        self.found = torch.empty((n, self.capacity), dtype=torch.int32, device=device)
        self.filled = torch.zeros(n, dtype=torch.int32, device=device)
        self.threshold = torch.full((n,), -torch.inf, device=device)
        self.overflow = torch.full((n,), -torch.inf, device=device)  # the best product that found no room
        self.met: dict[int, list[int]] = {}  # by a side's first row: when the threshold was raised, and since

    def add(self, tile: Tensor, first_row: int, first_column: int, columns_too: bool) -> None:
        rows, columns = tile.shape
        grid = (triton.cdiv(columns, BLOCK["COLUMNS"]), triton.cdiv(rows, BLOCK["ROWS"]))
        _filter[grid](
            tile,
            tile.stride(0),
            rows,
            columns,
            first_row,
            first_column,
            self.half_square,
            self.threshold,
            self.filled,
            self.overflow,
            self.products,
            self.found,
            self.capacity,
            COLUMNS_TOO=columns_too,
            **BLOCK,
        )

    def start(self, tile: Tensor, side: slice) -> None:
        """Add the first tile of a side, with itself. The first columns all enter, as there is no threshold yet."""
        start, end = 0, min(self.capacity, tile.shape[1])
        while start < tile.shape[1]:
            self.add(tile[:, start:end], side.start, side.start + start, columns_too=False)
            self.tighten(side)
            start, end = end, min(2 * end, tile.shape[1])
        self.met[side.start] = [end, 0]

    def meet(self, tile: Tensor, one: slice, other: slice) -> None:
        """Add the tile of two sides to the lists of both."""
        for side, new in ((one, tile.shape[1]), (other, tile.shape[0])):
            raised, since = self.met[side.start]
            if since + new > 1.25 * raised:
                self.tighten(side)
                raised, since = raised + since, 0
            self.met[side.start] = [raised, since + new]
        self.add(tile, one.start, other.start, columns_too=True)

    def tighten(self, side: slice) -> None:
        size = triton.next_power_of_2(self.capacity)
        _tighten[(triton.cdiv(side.stop - side.start, LISTS),)](
            self.threshold,
            self.filled,
            self.products,
            self.found,
            side.start,
            side.stop,
            self.k,
            self.capacity,
            LISTS=LISTS,
            SIZE=size,
            num_warps=max(1, min(8, LISTS * size // 512)),
        )

    def finish(self, side: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Columns (b, k), their products, descending, and a bound on every product left out, (b,): equation (7)."""
        self.tighten(side)
        products, order = self.products[side, : self.k].sort(dim=1, descending=True)
        columns = self.found[side, : self.k].gather(1, order)
        return columns, products, self.threshold[side].maximum(self.overflow[side])


def capacity(k: int) -> int:
    """Room in a list: k, k more until the rows seen have doubled, and six standard deviations of that."""
    return -(-(2 * k + int(9 * k**0.5) + 16) // 16) * 16


def tile_candidates(
    base: Tensor, centre: Tensor, n_candidates: int, dtype: Any, floats: int, progress: Callable[[float], Any]
) -> CandidateTable:
    """Candidates of every row of `base` (n, d) among all of them, from products in `dtype` with float32 results.

    floats: most numbers in a tile.  progress: called with the share of the products taken since the last call.
    """
    n, device = len(base), base.device
    order = torch.from_numpy(np.random.default_rng(0).permutation(n)).to(device)
    rounded, half_square, rounding_error, rounding_share = _rounded(base, centre, order, dtype)
    lists = _Lists(half_square, n_candidates)
    sides = _sides(n, max(min(math.isqrt(floats), MOST_ROWS), 2 * lists.capacity))
    share = 2 / (len(sides) * (len(sides) + 1))  # of the products, in one tile
    for side in sides:
        lists.start(_product(rounded[side], rounded[side]), side)
        progress(share)
    for one, other in itertools.combinations(sides, 2):
        lists.meet(_product(rounded[one], rounded[other]), one, other)
        progress(share)
    found = torch.empty((n, n_candidates), dtype=torch.int32, device=device)
    approximate = torch.empty((n, n_candidates), device=device)
    for side in sides:
        columns, products, largest_dropped = lists.finish(side)
        rows = order[side]
        found[rows] = order[columns.long()].to(torch.int32)
        approximate[rows] = -2 * products
        approximate[rows, -1] = -2 * largest_dropped
    return CandidateTable(found, approximate, rounding_error, rounding_share)


def _rounded(base: Tensor, centre: Tensor, order: Tensor, dtype: Any) -> tuple[Tensor, Tensor, Tensor, float]:
    """The centred rows in `order` and `dtype`, half their squares, and their rounding as in equation (2)."""
    n, d = base.shape
    rounded = torch.zeros((n, -(-d // 8) * 8), dtype=dtype, device=base.device)
    half_square, rounding_error = (torch.empty(n, device=base.device) for _ in range(2))
    share = torch.zeros((), device=base.device)
    for start in range(0, n, 8192):
        here = slice(start, min(start + 8192, n))
        centred = base[order[here]] - centre
        rounded[here, :d] = centred
        back = rounded[here, :d].to(torch.float32, copy=True)
        half_square[here] = norms(back).square_().div_(2)
        rounding_error[order[here]] = moved = norms(back.sub_(centred))
        share = share.maximum((moved / norms(centred).clamp(min=1e-30)).max())
    return rounded, half_square, rounding_error, float(share * (1 + share))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right.T in float32, from factors in bfloat16 or float32."""
    if left.dtype == torch.float32:
        return left @ right.T
    if left.is_cuda:
        return torch.mm(left, right.T, out_dtype=torch.float32)
    return left.float() @ right.float().T


def _sides(n: int, most: int) -> list[slice]:
    """n rows in sides of about the same length, at most `most`; all but the last a multiple of 64."""
    count = -(-n // most)
    edges = [n * i // count // 64 * 64 for i in range(count)] + [n]
    return [slice(*pair) for pair in itertools.pairwise(edges)]


def works_on(device: Any) -> bool:
    """Whether the kernels find, among a few rows, the neighbours that a direct search finds."""
    points = torch.from_numpy(np.random.default_rng(0).standard_normal((600, 64), np.float32)).to(device)
    points[7] = points[3]
    table = tile_candidates(points, points.mean(0), 24, torch.bfloat16, 2**16, lambda share: None)
    true = torch.cdist(points.double(), points.double())
    rows = table.rows.long()
    query = torch.arange(len(points), device=device).repeat_interleave(24)
    measured = pair_distances(points, points, query, rows.flatten()).view(rows.shape)
    near = true.topk(8, dim=1, largest=False).values
    exact = torch.allclose(measured.double(), true.gather(1, rows), rtol=1e-5, atol=1e-6)
    return exact and torch.allclose(measured.sort(dim=1).values[:, :8].double(), near, rtol=1e-5, atol=1e-6)
