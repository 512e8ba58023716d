"""Who might be near: candidates from matrix products, from FAISS, and from approximate indexes.

A candidate search takes the queries and yields blocks of candidates with their A, the product form of the squared
distance, and the bounds of its rounding error. `detect.search.knn` measures the candidates and proves that no
nearer row was left out.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from detect.search.bounds import Candidates, norms
from detect.search.partition import Partition, among_partition
from detect.search.tiles import among_themselves, extend, tile_side, width

if TYPE_CHECKING:
    from torch import Tensor

    from detect.search.bounds import PreparedRows

log = logging.getLogger(__name__)

EXACT = ("torch", "faiss")
APPROXIMATE = ("ivf", "hnsw")
BACKENDS = ("auto", *EXACT, *APPROXIMATE)
SPARE = 8  # candidates beyond k in float32, so that few queries are searched twice
SPARE_BF16 = 46  # the same in bfloat16
LEAST_ROWS = 8192  # among fewer, products of all pairs are quicker than cells
WORTH = (0.25, 0.1)  # share of pairs up to which cells are quicker than products in float32, in bfloat16
GROUP = 64  # columns whose minimum stands for them in the search for the smallest


def automatic() -> str:
    """The device to search on, where none was named."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def choose(queries: int, rows: int, itself: bool = True, device: str | None = None) -> tuple[str, str]:
    """The exact backend that is quickest on the device, and why; itself: the queries are the rows."""
    if (device or automatic()) != "cpu":
        return "torch", "there is a GPU"
    if fast_bfloat16("cpu"):
        return "torch", "this processor multiplies bfloat16 natively"
    if itself:
        return "torch", "each product serves the rows and the columns of its tile"
    if queries * rows <= 2.5e7:
        return "torch", "the search is small"
    if find_spec("faiss") is None:
        return "torch", "faiss is not installed"
    return "faiss", "the search is large, and this processor has no bfloat16 products"


@functools.cache
def fast_bfloat16(device: str) -> bool:
    """Whether bfloat16 products are much faster than float32 ones."""
    import torch

    if device != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in known)


# --- candidate searches: (search, whether queries are rows of the base) -> (queries -> blocks of candidates) ------

_Blocks = Iterator[tuple[int, int, Candidates]]


def _by_products(search: PreparedRows, exclude_self: bool) -> Callable[[Tensor], _Blocks]:
    kind = search.base.device.type
    bf16 = fast_bfloat16(kind) and search.d >= 64
    # One tile has nothing to mirror; on a GPU the plain way is then 2.5 times as fast (batches of 2,048 x 1024).
    tiles = kind == "cpu" or len(search.base) > tile_side(kind)

    def blocks(queries: Tensor) -> _Blocks:
        themselves = queries.data_ptr() == search.base.data_ptr() and len(queries) == len(search.base)
        if exclude_self and tiles and themselves:
            return _mirrored(search, bf16)
        return (_in_bfloat16 if bf16 else _in_float32)(search, exclude_self, queries)

    return blocks


def _mirrored(search: PreparedRows, bf16: bool) -> _Blocks:
    """All rows among themselves; see `detect.search.tiles`, and `detect.search.partition` for rows in groups."""
    import torch

    n, exact = len(search.base), (torch.float32, 2.0**-22)
    dtype, rho = (torch.bfloat16, 2.0**-8) if bf16 else exact
    pilot = PilotSample.draw(search)
    products = 0.8  # of the work, about

    def report(share: float) -> None:
        search.progress(products * share * n)

    if cells := _worthwhile_partition(search, pilot, dtype):
        (_, rho), wanted = exact, min(n, pilot.wanted(search, *exact))
        found = among_partition(search, cells, wanted, report)
    else:
        wanted = pilot.wanted(search, dtype, rho)
        if wanted > 4 * search.k + 64:  # lists so long cost more than exact products
            (dtype, rho), wanted = exact, search.k + 1 + SPARE
        found = among_themselves(search.base, search.centre, min(n, wanted), dtype, report)
    for begin in range(0, n, 4096):
        part = slice(begin, begin + 4096)
        candidates = Candidates(found.rows[part].long(), found.halves[part] * 2, rho, found.rounding_error[part])
        candidates.rounding_share, candidates.unreported = found.share * (1 + found.share), 1 - products
        yield begin, begin + len(candidates.rows), candidates


def _worthwhile_partition(search: PreparedRows, pilot: PilotSample, dtype: Any) -> Partition | None:
    """The partition, if its cells spare enough pairs to be quicker than products of all pairs."""
    import torch

    if search.base.device.type != "cpu" or len(search.base) < LEAST_ROWS:
        return None
    cells, sample = Partition.of(search)
    share = cells.share_left(sample, pilot.rows, pilot.kth_distance, search.eps)
    log.debug("cells leave %.3f of the pairs", share)
    return cells if share < WORTH[dtype == torch.bfloat16] else None


@dataclass(frozen=True)
class PilotSample:
    """Some rows (s, d) about the centre, squared distances to all (s, n), distance to the k-th (s,)."""

    rows: Tensor
    squares: Tensor
    kth_distance: Tensor

    @classmethod
    def draw(cls, search: PreparedRows, size: int = 64) -> PilotSample:
        import torch

        base = search.base
        rows = base[torch.linspace(0, len(base) - 1, min(size, len(base))).long().to(base.device)] - search.centre
        parts = [torch.cdist(rows, part - search.centre).square_() for part in base.split(8192)]
        squares = torch.cat(parts, dim=1)
        return cls(rows, squares, squares.kthvalue(search.k + 1, dim=1).values.sqrt())

    def wanted(self, search: PreparedRows, dtype: Any, rho: float) -> int:
        """Candidates that nearly all rows need for the proof; in bfloat16 it depends on the data."""
        norm, rounding_error = norms(self.rows), norms(self.rows - self.rows.to(dtype).float())
        share = float((rounding_error / norm.clamp(min=1e-30)).max())
        candidates = Candidates(self.rows, self.squares, rho, rounding_error, share)
        bound = search.bound(norm, self.kth_distance, candidates)
        return max(search.k + 1 + SPARE, int((self.squares <= bound[:, None]).sum(dim=1).max()) + 2)


def _in_float32(search: PreparedRows, exclude_self: bool, queries: Tensor) -> _Blocks:
    import torch

    m = len(search.base)
    wanted = min(m, search.k + exclude_self + SPARE)
    step = _block(search, len(queries), 4 * m)
    for begin in range(0, len(queries), step):
        part = queries[begin : begin + step] - search.centre
        approximate = torch.addmm(search.square[None], part, search.centred.T, alpha=-2)
        approximate += norms(part).square_()[:, None]
        values, rows = _smallest(approximate, wanted)
        yield begin, begin + len(part), Candidates(rows, values)


def _in_bfloat16(search: PreparedRows, exclude_self: bool, queries: Tensor) -> _Blocks:
    """Half the squared distance as one product: rows extended by their squares, in PIECES numbers each."""
    import torch

    m = len(search.base)
    wanted = min(m, search.k + exclude_self + max(SPARE_BF16, search.k))
    padded = -(-m // GROUP) * GROUP
    keys = torch.zeros((padded, width(search.d)), dtype=torch.bfloat16, device=queries.device)
    share = 0.0
    for begin in range(0, m, 4096):
        part = search.base[begin : begin + 4096] - search.centre
        rounding_error = extend(part, keys[begin : begin + len(part)], False)
        share = max(share, float((rounding_error / norms(part).clamp(min=1e-30)).max()))
    step = _block(search, len(queries), 2 * padded)
    products = torch.empty((step, padded), dtype=torch.bfloat16, device=queries.device)
    extended = torch.zeros((step, width(search.d)), dtype=torch.bfloat16, device=queries.device)
    for begin in range(0, len(queries), step):
        part = queries[begin : begin + step] - search.centre
        rounding_error = extend(part, extended[: len(part)], True)
        block = products[: len(part)]
        torch.mm(extended[: len(part)], keys.T, out=block)
        block[:, m:] = torch.inf
        values, rows = _smallest(block, wanted)
        # 2 ** -8 covers the rounding of the product; norms of rounded rows may exceed their own by the share.
        found = Candidates(rows, values.mul_(2), 2.0**-8, rounding_error, share * (1 + share))
        yield begin, begin + len(part), found


def _block(search: PreparedRows, queries: int, row_bytes: int) -> int:
    """Queries at once: within the memory bound, but no more than keeps the products near the processor."""
    room = search.floats
    if search.base.device.type == "cpu":
        room = min(room, max(2**23, 32 * row_bytes))
    return max(1, min(queries, 4 * room // (2 * row_bytes)))


def _smallest(values: Tensor, wanted: int) -> tuple[Tensor, Tensor]:
    """The smallest of each row of (b, m), float32 and ascending, and their columns.

    They lie in the groups of columns with the smallest minima, as many groups as wanted; so only those are sorted.
    """
    import torch

    b, m = values.shape
    kind = values.dtype
    if kind == torch.bfloat16 and values.device.type == "cpu":
        # As integers they sort alike, many times faster; but for the order among negative ones, all of which are
        # 0 but for rounding: a list that ends among them is found to be too short in any case.
        values = values.view(torch.int16)
    if m % GROUP or m < 2 * GROUP * wanted:
        found, columns = values.topk(wanted, dim=1, largest=False)
        return found.view(kind).float(), columns
    grouped = values.view(b, m // GROUP, GROUP)
    groups = grouped.amin(2).topk(wanted, dim=1, largest=False, sorted=False).indices
    members = grouped.gather(1, groups[:, :, None].expand(-1, -1, GROUP)).view(b, -1)
    found, place = members.topk(wanted, dim=1, largest=False)
    return found.view(kind).float(), groups.gather(1, place // GROUP) * GROUP + place % GROUP


def _by_faiss(search: PreparedRows, exclude_self: bool) -> Callable[[Tensor], _Blocks]:
    return functools.partial(_in_faiss, search, exclude_self)


def _in_faiss(search: PreparedRows, exclude_self: bool, queries: Tensor) -> _Blocks:
    import faiss
    import torch

    wanted = min(len(search.base), search.k + exclude_self + SPARE)
    base = search.centred.numpy()
    gpu = faiss.StandardGpuResources() if getattr(faiss, "get_num_gpus", int)() else None
    for begin in range(0, len(queries), 4096):
        part = (queries[begin : begin + 4096] - search.centre).numpy()
        if gpu is None:
            values, rows = faiss.knn(part, base, wanted)
        else:
            values, rows = faiss.knn_gpu(gpu, part, base, wanted)
        yield begin, begin + len(part), Candidates(torch.from_numpy(rows), torch.from_numpy(values))


def _by_index(kind: str, search: PreparedRows, exclude_self: bool) -> Callable[[Tensor], _Blocks]:
    import faiss

    m, d = search.base.shape
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(d, 32)
        index.hnsw.efConstruction = 80
        index.hnsw.efSearch = max(64, 2 * search.k)
    else:
        cells = max(1, min(int(4 * m**0.5), m // 39))  # faiss asks for 39 training rows a cell
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, cells)
        index.train(search.centred.numpy())
        index.nprobe = max(1, cells // 16)
    index.add(search.centred.numpy())
    return functools.partial(_in_index, index, search, exclude_self)


def _in_index(index: Any, search: PreparedRows, exclude_self: bool, queries: Tensor) -> _Blocks:
    import torch

    wanted = min(len(search.base), search.k + exclude_self + SPARE)
    for begin in range(0, len(queries), 4096):
        part = (queries[begin : begin + 4096] - search.centre).numpy()
        _, rows = index.search(part, wanted)
        yield begin, begin + len(part), Candidates(torch.from_numpy(rows), None)


CANDIDATE_SEARCHES: dict[str, Callable[[PreparedRows, bool], Callable[[Tensor], _Blocks]]] = {
    "torch": _by_products,
    "faiss": _by_faiss,
    "ivf": functools.partial(_by_index, "ivf"),
    "hnsw": functools.partial(_by_index, "hnsw"),
}
