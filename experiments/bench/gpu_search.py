"""The neighbour search on a GPU: is it exact, what takes its time, how fast is it beside other packages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np

from experiments.bench.gpu import _same_table, brute_force
from experiments.bench.gpu_rates import timed
from experiments.bench.report import Check, Note, Ratio, clustered

WAYS = {"tiles by torch": False, "tiles by our kernels": True}
NEW = "tiles by our kernels"
BLOCKS = (  # of the filter: rows, columns, warps, registers
    (16, 128, 8, 64),
    (8, 128, 4, 64),
    (8, 128, 4, None),
    (8, 256, 8, 64),
    (32, 128, 8, 128),
    (4, 128, 4, 64),
)


@contextmanager
def _way(name: str) -> Iterator[list[str]]:
    """Search so; the list fills with what the searches log. The old way has plain copies to the GPU, too."""
    from detect.search import candidates, transfer

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("detect.search")
    level, logger.propagate = logger.level, False
    piece = transfer.PIECE if WAYS[name] else 2**60
    with mock.patch.object(candidates, "USE_KERNELS", WAYS[name]), mock.patch.object(transfer, "PIECE", piece):
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        try:
            yield said
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = True


def points(device: str, n: int, d: int) -> np.ndarray:
    """(n, d) in clusters."""
    return clustered(n, d, device=device)


def noise(device: str, n: int, d: int) -> np.ndarray:
    """(n, d) of one normal distribution."""
    import torch

    made: np.ndarray = (
        torch.randn(n, d, generator=torch.Generator(device).manual_seed(1), device=device).cpu().numpy()
    )
    return made


def _search(x: np.ndarray, k: int, memory_mb: int = 256) -> Any:
    from detect import Embeddings, NeighbourSearch, find_neighbours

    return find_neighbours(Embeddings.of(x), k, NeighbourSearch(backend="torch", memory_mb=memory_mb))


def exactness(device: str, n: int, d: int, k: int) -> Iterator[Check | Note]:
    """Tables of hard data against float64, with many small tiles and with few large ones."""
    import torch

    from detect.search import candidates

    with _way(NEW) as said:
        there = candidates.kernels(torch.device(device)) is not None
    expected = device.startswith("cuda")
    yield Check(
        "our kernels compile and work where there is a GPU", there or not expected, "; ".join(said) or "yes"
    )
    rng = np.random.default_rng(0)
    far = clustered(n, d) + np.float32(30)
    far[1 :: max(2, n // 200)] = far[0 : -1 : max(2, n // 200)]
    copies = clustered(n, d)[np.arange(n) // 3]
    line = 0.1 * rng.standard_normal((n, d), np.float32)
    line += np.linspace(-3, 3, n, dtype=np.float32)[:, None]
    sets = {"clusters": clustered(n, d), "noise": noise(device, n, d), "far duplicates": far}
    sets |= {"each row thrice": copies, "along a line": line}
    for name, x in sets.items():
        true, _ = brute_force(x, k, device=device)
        with _way(NEW) as said:
            for memory_mb in (16, 256):
                table = _search(x, k, memory_mb)
                what = f"{n:,} x {d}, {name}, k = {k}, {memory_mb} MB, against float64"
                yield _same_table(what, table, x, true, device=device)
                tied = np.diff(table.distances, axis=1) == 0
                wrong = int((tied & (np.diff(table.indices, axis=1) <= 0)).sum())
                yield Check(f"{name}: ties by row", wrong == 0, f"{wrong} of {int(tied.sum())} ties, 0")
        yield Note(f"{name}: the search said", "; ".join(said))


def rounding(device: str, n: int, d: int) -> Iterator[Check]:
    """Products of rows along one direction, whose errors have one sign: within what equation (3) allows?"""
    import torch

    from detect.search.kernels import _product
    from detect.search.knn import _full_precision

    generator = torch.Generator(device).manual_seed(0)
    rows = torch.rand(n, d, generator=generator, device=device) + 0.5
    rows = rows.to(torch.bfloat16)
    with _full_precision():
        found = _product(rows, rows).double()
    exact = rows.double()
    squares = exact.square().sum(1)
    unit = (squares[:, None] + squares) * 2.0**-24 / 2
    worst, allowed = float(((found - exact @ exact.T).abs() / unit).max()), d / 8 + 16
    yield Check(
        f"products of {n:,} x {d} along one direction, in units of 2^-24",
        worst <= allowed,
        f"{worst:.1f}, <= {allowed:g}",
    )


def filter_blocks(device: str, side: int, d: int, share: float = 1.1e-4) -> Iterator[Ratio | Note]:
    """Milliseconds of a tile's product and of its filter by blocks of several shapes; the best one is then used.

    share: of the products that pass, as late in a search of a million rows.
    """
    import torch

    from detect.search import candidates

    kernels = candidates.kernels(torch.device(device))
    if kernels is None:
        yield Note("left out", f"the kernels do not run on {device}")
        return
    x = torch.randn(2 * side, d, device=device).to(torch.bfloat16)
    lists = kernels._Lists(x.float().square().sum(1) / 2, 110)
    tile = kernels._product(x[:side], x[side:])
    took = _milliseconds(lambda: kernels._product(x[:side], x[side:]))
    yield Ratio(f"a product of {side:,} x {side:,} x {d}", took, unit="ms")
    half = tile[:1024] - lists.half_square[:1024, None] - lists.half_square[side:]
    lists.threshold.fill_(float(half.flatten().kthvalue(int((1 - share) * half.numel())).values))
    best = (float("inf"), dict(kernels.BLOCK))
    for rows, columns, warps, registers in BLOCKS:
        kernels.BLOCK.update(ROWS=rows, COLUMNS=columns, num_warps=warps, maxnreg=registers)
        lists.filled.zero_()
        took = _milliseconds(lambda: lists.add(tile, 0, side, columns_too=True))
        best = min(best, (took, dict(kernels.BLOCK)), key=lambda one: one[0])
        yield Ratio(f"its filter, {rows} x {columns}, {warps} warps, {registers} registers", took, unit="ms")
    kernels.BLOCK.update(best[1])
    yield Note("the best of these, used from here on", str(best[1]))
    took = _milliseconds(lambda: lists.tighten(slice(0, side)))
    yield Ratio(f"raising the thresholds of {side:,} lists", took, unit="ms")


def _milliseconds(work: Callable[[], Any], rounds: int = 20) -> float:
    import torch

    work()
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(rounds):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / rounds


def profile(device: str, x: np.ndarray, k: int, name: str, most: int = 14) -> Iterator[Ratio | Note]:
    """What one search spends its time on: the GPU's kernels and copies, and the CPU's calls."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * device.startswith("cuda")
    with _way(name) as said:
        _search(x[: len(x) // 5], k)  # warm-up
        said.clear()
        seconds, *_ = timed(device, _search, x, k)
        yield Ratio(f"neighbours, {len(x):,} x {x.shape[1]}, k = {k}, {name}", seconds, unit="s")
        yield Note("it said", "; ".join(said))
        with profiler(activities=activities) as taken:
            _search(x, k)
    events = taken.key_averages()
    on_gpu = [event for event in events if "CPU" not in str(event.device_type)]
    busy = sum(event.self_device_time_total for event in on_gpu)
    yield Ratio("of that, the GPU's kernels and copies", busy / 1e6, unit="s")
    for event in sorted(on_gpu, key=lambda event: -event.self_device_time_total)[:most]:
        yield Note(f"GPU: {event.key[:70]}", f"{event.self_device_time_total / 1e3:.1f} ms, {event.count} times")
    on_cpu = [event for event in events if "CPU" in str(event.device_type)]
    for event in sorted(on_cpu, key=lambda event: -event.self_cpu_time_total)[: most // 2]:
        yield Note(f"CPU: {event.key[:70]}", f"{event.self_cpu_time_total / 1e3:.1f} ms, {event.count} times")


def old_and_new(device: str, x: np.ndarray, k: int, rate: float | None) -> Iterator[Ratio | Check | Note]:
    """Seconds of both ways, ours twice and with larger tiles as well; whether they give the same table.

    rate: of large bfloat16 products, in 10^12 operations per second.
    """
    n, d = x.shape
    tables: dict[str, Any] = {}
    best: dict[str, float] = {}
    for name, memory_mb in ((NEW, 256), (NEW, 256), (NEW, 1024), ("tiles by torch", 256)):
        with _way(name) as said:
            seconds, peak, table = timed(device, _search, x, k, memory_mb)
        yield Ratio(f"neighbours, {n:,} x {d}, k = {k}, {name}, memory_mb={memory_mb}", seconds, unit="s")
        yield Note("it said", "; ".join(said))
        if peak is not None:
            yield Ratio("peak memory of that", peak, unit="GB")
        if rate is not None:
            share = 100 * n * n * d / seconds / 1e12 / rate  # one product serves both rows of a pair
            yield Ratio("of the bfloat16 rate, with one product for each pair of rows", share, unit="%")
        tables[name], best[name] = table, min(seconds, best.get(name, seconds))
    one, other = (tables[name] for name in WAYS)
    error = float((np.abs(one.distances - other.distances) / np.maximum(one.distances, 1e-6)).max())
    differ = float((one.indices != other.indices).mean())
    yield Check("both ways give the same distances", error <= 1e-5, f"largest relative error {error:.1e}, <= 1e-5")
    yield Note("share of neighbours that differ: ties within float32", f"{differ:.1e}")
    yield Ratio("ours against the old way", best["tiles by torch"] / best[NEW])


def batches(device: str, x: np.ndarray, k: int, size: int = 2048) -> Iterator[Ratio]:
    """Seconds of both ways in batches, whose products take no tiles."""
    from detect import Embeddings, NeighbourSearch, find_neighbours

    embeddings, search = Embeddings.of(x), NeighbourSearch("batch", min(size, len(x)), backend="torch")
    for name in WAYS:
        with _way(name):
            seconds = min(timed(device, find_neighbours, embeddings, k, search).seconds for _ in range(2))
        yield Ratio(f"neighbours in batches of {size:,}, {len(x):,} rows, k = {k}, {name}", seconds, unit="s")


def transfers(device: str, x: np.ndarray) -> Iterator[Ratio]:
    """Gigabytes a second to the GPU and back, by torch and in pinned pieces."""
    import torch

    from detect.search import transfer

    where, size = torch.device(device), x.nbytes / 1e9
    for name, piece in (("by torch", 2**60), ("in pinned pieces", transfer.PIECE)):
        with mock.patch.object(transfer, "PIECE", piece):
            seconds, _, there = timed(device, transfer.to_device, x, where)
            yield Ratio(f"{size:.1f} GB to the GPU, {name}", size / seconds, unit="GB/s", seconds=seconds)
            seconds, *_ = timed(device, transfer.to_host, there)
            yield Ratio(f"{size:.1f} GB back, {name}", size / seconds, unit="GB/s", seconds=seconds)
            del there


def peers(device: str, x: np.ndarray, k: int) -> Iterator[Ratio | Note]:
    """Seconds of other ways to the same table, from host memory and back, and how many times faster ours is."""
    with _way(NEW):
        ours = min(timed(device, _search, x, k).seconds for _ in range(2))
    yield Ratio(f"neighbours, {len(x):,} x {x.shape[1]}, k = {k}: ours", ours, unit="s")
    for name, search in (
        ("torch.cdist and topk", _by_cdist),
        ("faiss.knn_gpu", _by_faiss),
        ("cuVS brute force", _by_cuvs),
    ):
        try:
            seconds = timed(device, search, device, x, k).seconds
        except ImportError as error:
            yield Note(name, f"left out: {error}")
            continue
        yield Ratio(f"{name}: ours is faster by", seconds / ours, seconds=ours)
        yield Ratio(f"{name}", seconds, unit="s")


def _by_cdist(device: str, x: np.ndarray, k: int, chunk: int = 2048) -> Any:
    import torch

    rows = torch.from_numpy(x).to(device)
    found = [torch.cdist(part, rows).topk(k + 1, dim=1, largest=False) for part in rows.split(chunk)]
    return torch.cat([one.values for one in found]).cpu(), torch.cat([one.indices for one in found]).cpu()


def _by_faiss(device: str, x: np.ndarray, k: int) -> Any:
    import faiss

    if not hasattr(faiss, "StandardGpuResources"):
        raise ImportError("this faiss was built without GPUs")
    if not faiss.get_num_gpus():  # it would end the process
        raise ImportError("this faiss sees no GPU")
    return faiss.knn_gpu(faiss.StandardGpuResources(), x, x, k + 1)


def _by_cuvs(device: str, x: np.ndarray, k: int) -> Any:
    import cupy
    from cuvs.neighbors import brute_force as cuvs

    rows = cupy.asarray(x)
    distances, indices = cuvs.search(cuvs.build(rows, metric="sqeuclidean"), rows, k + 1)
    return cupy.asarray(distances).get(), cupy.asarray(indices).get()
