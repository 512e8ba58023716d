"""Candidates for nearest neighbours: from matrix products, from FAISS, and from approximate indexes.

A candidate search takes queries and yields blocks of candidates with their A, the product form of the squared
distance, and what is known of its rounding error. `detect.search.knn` measures the candidates and checks that no
nearer row was left out. Equation numbers are those of docs/search.md.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from detect.search.bounds import Candidates, norms
from detect.search.partition import Partition, partition_candidates
from detect.search.selection import smallest
from detect.search.tiles import extend, extend_centred, extended_width, tile_candidates, tile_side

if TYPE_CHECKING:
    from types import ModuleType

    import torch
    from torch import Tensor

    from detect.search.bounds import PreparedRows

log = logging.getLogger(__name__)

EXACT = ("torch", "faiss")
APPROXIMATE = ("ivf", "hnsw")
BACKENDS = ("auto", *EXACT, *APPROXIMATE)
EXTRA = 8  # candidates beyond k in float32, so that few queries are searched twice
EXTRA_BFLOAT16 = 46  # the same in bfloat16
RHO = {"float32": 2.0**-22, "bfloat16": 2.0**-8}  # rounding of half of A as it is stored: equation (3)
MIN_PARTITION_ROWS = 8192  # among fewer, products of all pairs are faster than cells
MIN_TILED_ROWS = 8192  # on CPUs in bfloat16: among fewer, selection costs less than a mirrored tile saves
MAX_SHARE = {"float32": 0.25, "bfloat16": 0.1}  # of pairs left, up to which cells are faster than all products
EXTRA_ON_GPU = 32  # beyond what the pilot sample needs: a row costs little in a list, and much if searched again
USE_KERNELS = True  # those of `detect.search.kernels`, where they work; the benchmark compares with False
PRODUCT_WORK = 0.8  # share of a search that products of rows among themselves take, for the progress


def automatic() -> str:
    """The device to search on if none was named."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def choose(queries: int, rows: int, among_themselves: bool = True, device: str | None = None) -> tuple[str, str]:
    """The exact backend for `queries` that are searched among `rows` each, and the reason.

    among_themselves: the queries are the rows of their scope.
    """
    if (device or automatic()) != "cpu":
        return "torch", "there is a GPU"
    if fast_bfloat16("cpu"):
        return "torch", "this processor multiplies bfloat16 natively"
    if among_themselves and rows >= 2 * tile_side("cpu"):
        return "torch", "each product serves the rows and the columns of its tile"
    if among_themselves or queries * rows <= 2.5e7:
        return "torch", "each search is small"
    if find_spec("faiss") is None:
        return "torch", "faiss is not installed"
    return "faiss", "the search is large, and this processor has no bfloat16 products"


@functools.cache
def fast_bfloat16(device_type: str) -> bool:
    """Whether bfloat16 products are much faster than float32 ones."""
    import torch

    if device_type != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in known)


def kernels(device: torch.device) -> ModuleType | None:
    """`detect.search.kernels`, where the device is a GPU and they work on it."""
    return _working_kernels(str(device)) if USE_KERNELS and device.type == "cuda" else None


@functools.cache
def _working_kernels(device: str) -> ModuleType | None:
    try:
        from triton.errors import TritonError

        from detect.search import kernels
    except ImportError as error:
        log.info("neighbours on %s without kernels of our own: %s", device, error)
        return None
    try:
        if kernels.works_on(device):
            return kernels
        log.warning("the neighbour kernels find wrong neighbours on %s; products by torch are used instead", device)
    except (RuntimeError, ValueError, TypeError, OSError, TritonError) as error:
        log.warning("the neighbour kernels fail on %s; products by torch are used instead: %s", device, error)
    return None


# --- candidate searches: (search, whether queries are rows of the base) -> (queries -> blocks of candidates) ------

_Blocks = Iterator[tuple[int, int, Candidates]]  # first query, last query + 1, their candidates
_CandidateSearch = Callable[["Tensor"], _Blocks]


def _by_products(search: PreparedRows, exclude_self: bool) -> _CandidateSearch:
    device_type = search.base.device.type
    bfloat16 = fast_bfloat16(device_type) and search.d >= 64
    # A single tile has nothing to mirror, and products without a running threshold are faster then.
    least = MIN_TILED_ROWS if bfloat16 and device_type == "cpu" else 2 * tile_side(device_type)
    tiles = len(search.base) >= least

    def blocks(queries: Tensor) -> _Blocks:
        if exclude_self and tiles and queries is search.base:
            return _among_themselves(search, bfloat16)
        return (_in_bfloat16 if bfloat16 else _in_float32)(search, exclude_self, queries)

    return blocks


def _among_themselves(search: PreparedRows, bfloat16: bool) -> _Blocks:
    """All rows among themselves: by cells where they leave few pairs to multiply, otherwise by tiles."""
    import torch

    n, exact = len(search.base), (torch.float32, RHO["float32"])
    dtype, rho = (torch.bfloat16, RHO["bfloat16"]) if bfloat16 else exact
    pilot = PilotSample.draw(search)

    def report(share: float) -> None:
        search.progress(PRODUCT_WORK * share * n)

    if cells := _worthwhile_partition(search, pilot, bfloat16):
        (_, rho), n_candidates = exact, min(n, pilot.candidates_needed(search, *exact))
        table = partition_candidates(search, cells, n_candidates, report)
    elif device_kernels := kernels(search.base.device):
        rho = RHO["float32"]  # products of bfloat16 factors are stored in float32
        most = 4 * search.k + 64 + EXTRA_ON_GPU  # measuring more costs more than float32 products
        n_candidates = pilot.candidates_needed(search, dtype, rho) + EXTRA_ON_GPU
        if n_candidates > most:
            dtype = torch.float32
            n_candidates = min(most, pilot.candidates_needed(search, dtype, rho) + EXTRA_ON_GPU)
        n_candidates = min(n, n_candidates)
        table = device_kernels.tile_candidates(
            search.base, search.centre, n_candidates, dtype, search.floats, report
        )
    else:
        n_candidates = pilot.candidates_needed(search, dtype, rho)
        if n_candidates > 4 * search.k + 64:  # measuring these costs more than float32 products
            (dtype, rho), n_candidates = exact, search.k + 1 + EXTRA
        table = tile_candidates(search.base, search.centre, min(n, n_candidates), dtype, report)
    step = 4096 if search.base.device.type == "cpu" else 16384
    for start in range(0, n, step):
        block = slice(start, min(start + step, n))
        found = Candidates(table.rows[block].long(), table.approximate[block], rho, table.rounding_error[block])
        found.rounding_share, found.unreported = table.rounding_share, 1 - PRODUCT_WORK
        yield block.start, block.stop, found


def _worthwhile_partition(search: PreparedRows, pilot: PilotSample, bfloat16: bool) -> Partition | None:
    """The partition, if its cells leave so few pairs that it is faster than products of all pairs."""
    if search.base.device.type != "cpu" or len(search.base) < MIN_PARTITION_ROWS:
        return None
    cells, sample = Partition.of(search)
    share = cells.share_left(sample, pilot.rows, pilot.kth_distance, search.eps)
    log.debug("cells leave %.3f of the pairs", share)
    return cells if share < MAX_SHARE["bfloat16" if bfloat16 else "float32"] else None


@dataclass(frozen=True)
class PilotSample:
    """Some rows (s, d) about the centre, their squared distances to all (s, n), and to the k-th nearest (s,)."""

    rows: Tensor
    squares: Tensor
    kth_distance: Tensor

    @classmethod
    def draw(cls, search: PreparedRows, size: int = 64) -> PilotSample:
        import torch

        base = search.base
        rows = base[torch.linspace(0, len(base) - 1, min(size, len(base))).long().to(base.device)] - search.centre
        parts = [torch.cdist(rows, block - search.centre).square_() for block in base.split(8192)]
        squares = torch.cat(parts, dim=1)
        return cls(rows, squares, squares.kthvalue(search.k + 1, dim=1).values.sqrt())

    def candidates_needed(self, search: PreparedRows, dtype: Any, rho: float) -> int:
        """Candidates with which nearly all rows pass equation (5); in bfloat16 it depends on the data."""
        norm, rounding_error = norms(self.rows), norms(self.rows - self.rows.to(dtype).float())
        share = float((rounding_error / norm.clamp(min=1e-30)).max())
        candidates = Candidates(self.rows, self.squares, rho, rounding_error, share)
        bound = search.bound(norm, self.kth_distance, candidates)
        return max(search.k + 1 + EXTRA, int((self.squares <= bound[:, None]).sum(dim=1).max()) + 2)


def _in_float32(search: PreparedRows, exclude_self: bool, queries: Tensor) -> _Blocks:
    import torch

    m = len(search.base)
    n_candidates = min(m, search.k + exclude_self + EXTRA)
    step = _block_size(search, len(queries), 4 * m)
    for start in range(0, len(queries), step):
        block = queries[start : start + step] - search.centre
        approximate = torch.addmm(search.square[None], block, search.centred.T, alpha=-2)
        approximate += norms(block).square_()[:, None]
        values, rows = approximate.topk(n_candidates, dim=1, largest=False)
        yield start, start + len(block), Candidates(rows, values)


def _in_bfloat16(search: PreparedRows, exclude_self: bool, queries: Tensor) -> _Blocks:
    """Half of A as one product of extended rows, equation (6)."""
    import torch

    m, device = len(search.base), queries.device
    n_candidates = min(m, search.k + exclude_self + max(EXTRA_BFLOAT16, search.k))
    right = torch.zeros((m, extended_width(search.d)), dtype=torch.bfloat16, device=device)
    _, rounding_share = extend_centred(search.base, search.centre, right)
    step = _block_size(search, len(queries), 2 * m)
    products = torch.empty((step, m), dtype=torch.bfloat16, device=device)
    left = torch.zeros((step, extended_width(search.d)), dtype=torch.bfloat16, device=device)
    for start in range(0, len(queries), step):
        block = queries[start : start + step] - search.centre
        rounding_error = extend(block, left[: len(block)], True)
        half = torch.mm(left[: len(block)], right.T, out=products[: len(block)])
        values, rows = smallest(half, n_candidates)
        found = Candidates(rows, values.float().mul_(2), RHO["bfloat16"], rounding_error, rounding_share)
        yield start, start + len(block), found


def _block_size(search: PreparedRows, queries: int, row_bytes: int) -> int:
    """Queries at once: within the memory bound, and on a CPU few enough for products to stay in its caches."""
    room = search.floats
    if search.base.device.type == "cpu":
        room = min(room, max(2**23, 32 * row_bytes))
    return max(1, min(queries, 4 * room // (2 * row_bytes)))


def _by_faiss(search: PreparedRows, exclude_self: bool) -> _CandidateSearch:
    return functools.partial(_in_faiss, search, exclude_self)


def _in_faiss(search: PreparedRows, exclude_self: bool, queries: Tensor) -> _Blocks:
    import faiss
    import torch

    n_candidates = min(len(search.base), search.k + exclude_self + EXTRA)
    base = search.centred.numpy()
    gpu = faiss.StandardGpuResources() if getattr(faiss, "get_num_gpus", int)() else None
    for start in range(0, len(queries), 4096):
        block = (queries[start : start + 4096] - search.centre).numpy()
        if gpu is None:
            values, rows = faiss.knn(block, base, n_candidates)
        else:
            values, rows = faiss.knn_gpu(gpu, block, base, n_candidates)
        yield start, start + len(block), Candidates(torch.from_numpy(rows), torch.from_numpy(values))


def _by_index(kind: str, search: PreparedRows, exclude_self: bool) -> _CandidateSearch:
    """kind: "hnsw" (a graph) or "ivf" (an inverted file)."""
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

    n_candidates = min(len(search.base), search.k + exclude_self + EXTRA)
    for start in range(0, len(queries), 4096):
        block = (queries[start : start + 4096] - search.centre).numpy()
        _, rows = index.search(block, n_candidates)
        yield start, start + len(block), Candidates(torch.from_numpy(rows), None)


CANDIDATE_SEARCHES: dict[str, Callable[[PreparedRows, bool], _CandidateSearch]] = {
    "torch": _by_products,
    "faiss": _by_faiss,
    "ivf": functools.partial(_by_index, "ivf"),
    "hnsw": functools.partial(_by_index, "hnsw"),
}
