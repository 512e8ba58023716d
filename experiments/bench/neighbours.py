"""The neighbour engine and the detectors on it beside the usual ways, on a CPU."""

from __future__ import annotations

import functools
import gc
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from experiments.bench.report import Check, Ratio, best_of, clustered, section

# --- one batch: k-dist, LID, SLOF and DAO ------------------------------------------------------------------------


def straightforward(x: Any, k: int) -> list[Any]:
    """k-dist, LID, SLOF and DAO, each by itself: no matrix products, full sorts, lists of gathers."""
    import torch

    def table() -> tuple[Any, Any]:
        distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        distances.fill_diagonal_(torch.inf)
        return torch.sort(distances, dim=1)

    def dimension(distances: Any) -> Any:
        return -k / torch.log(distances[:, :k] / distances[:, k - 1 : k]).sum(dim=1)

    def of_neighbours(values: Any, rows: Any) -> Any:
        return torch.stack([torch.index_select(values, 0, row) for row in rows[:, :k]])

    k_dist = table()[0][:, k - 1]
    lid = dimension(table()[0])
    distances, rows = table()
    slof = (distances[:, k - 1 : k] / of_neighbours(distances, rows)[:, :, k - 1]).mean(dim=1)
    distances, rows = table()
    ratio = torch.log(distances[:, k - 1 : k] / of_neighbours(distances, rows)[:, :, k - 1])
    dao = (of_neighbours(dimension(distances), rows) * ratio).mean(dim=1)
    return [k_dist, lid, slof, dao]


@section("batch")
def batch(quick: bool) -> Iterator[Ratio | Check]:
    """k-dist, LID, SLOF and DAO on one batch of 2048 x 512, k = 16, against the straightforward algorithm"""
    import torch

    from detect import DAO, LID, SLOF, Embeddings, KDistance, find_neighbours

    x = clustered(2048)
    embeddings, tensor = Embeddings.of(x), torch.from_numpy(x)
    detectors = [KDistance(k=16), LID(k=16), SLOF(k=16), DAO(k=16)]

    def ours() -> list[np.ndarray]:
        table = find_neighbours(embeddings, 16, detectors[0].search)
        return [detector.score_neighbours(table) for detector in detectors]

    for scores, expected in zip(ours(), straightforward(tensor, 16), strict=True):
        np.testing.assert_allclose(scores, expected.numpy(), rtol=2e-3, atol=1e-4)
    mine, theirs = best_of(3 if quick else 7, ours, lambda: straightforward(tensor, 16))
    yield Ratio("four detectors, against the straightforward algorithm", theirs / mine, 40, seconds=mine)


# --- the full scope ----------------------------------------------------------------------------------------------


@section("knn")
def knn(quick: bool) -> Iterator[Ratio | Check]:
    """Full scope against faiss.knn, 512 wide, k = 17"""
    import faiss

    from detect import Embeddings, NeighbourSearch, find_neighbours

    n = 10_000 if quick else 50_000
    for kind, x in (
        ("clustered", clustered(n)),
        ("noise", np.random.default_rng(0).standard_normal((n, 512), np.float32)),
    ):
        search = functools.partial(find_neighbours, Embeddings.of(x), 17, NeighbourSearch())
        mine, theirs = best_of(2, search, functools.partial(faiss.knn, x, x, 18))
        aim = None if quick else 1
        yield Ratio(f"{n:,} {kind} points, against faiss.knn", theirs / mine, aim, seconds=mine)


@section("lof")
def lof(quick: bool) -> Iterator[Ratio | Check]:
    """LOF at full scope against scikit-learn's and PyOD's, 512 wide, k = 16"""
    from sklearn.neighbors import LocalOutlierFactor

    from detect import LOF

    n = 5_000 if quick else 20_000
    x = clustered(n)
    sides: dict[str, Callable[[], Any]] = {"scikit-learn": lambda: LocalOutlierFactor(16).fit(x)}
    try:
        from pyod.models.lof import LOF as PyODLOF

        sides["PyOD"] = lambda: PyODLOF(n_neighbors=16).fit(x)
    except ImportError:
        print("  PyOD is not installed (extra `detectors`): left out")
    np.testing.assert_allclose(
        LOF(k=16).score(x[:2000]), -LocalOutlierFactor(16).fit(x[:2000]).negative_outlier_factor_, rtol=1e-4
    )
    mine, *others = best_of(2, lambda: LOF(k=16).score(x), *sides.values())
    aim = None if quick else 10
    for name, theirs in zip(sides, others, strict=True):
        yield Ratio(f"LOF of {n:,} points, against {name}'s", theirs / mine, aim, seconds=mine)
    if not quick:  # where the points lie in groups, more of them spare more pairs
        n, x = 50_000, clustered(50_000)
        mine, theirs = best_of(1, lambda: LOF(k=16).score(x), lambda: LocalOutlierFactor(16).fit(x))
        yield Ratio(f"LOF of {n:,} points, against scikit-learn's", theirs / mine, seconds=mine)


# --- what each part of the engine gains ---------------------------------------------------------------------------


@section("parts")
def parts(quick: bool) -> Iterator[Ratio | Check]:
    """Parts of the full scope: processor seconds without each, divided by those with it; 512 wide, k = 17"""
    from detect.search import candidates

    formats = ["float32", "bfloat16"] if candidates.fast_bfloat16("cpu") else ["float32"]
    for n in (2048, 20_000) if quick else (2048, 20_000, 50_000):
        levels = PART_LEVELS[:1] if n < 4096 else PART_LEVELS  # few rows are a single tile, and are not partitioned
        for kind, x in (
            ("clustered", clustered(n)),
            ("noise", np.random.default_rng(0).standard_normal((n, 512), np.float32)),
        ):
            ways = list(itertools.product(formats, levels))
            sides = [functools.partial(_search_with, x, *way) for way in ways]
            best = best_of(7 if n < 4096 else 1, *sides, clock=time.process_time)
            seconds = dict(zip(ways, best, strict=True))
            for number in formats:
                for without, part in itertools.pairwise(levels):
                    with_part = seconds[number, part]
                    ratio = seconds[number, without] / with_part
                    yield Ratio(f"{n:,} {kind} rows, {number}: {part}", ratio, seconds=with_part)
            if len(formats) == 2:
                for level in levels:
                    ratio = seconds["float32", level] / seconds["bfloat16", level]
                    yield Ratio(f"{n:,} {kind} rows, {level}: bfloat16", ratio, seconds=seconds["bfloat16", level])


PART_LEVELS = ("products", "tiles", "cells")  # each level has the parts before it, too


def _search_with(x: np.ndarray, number: str, level: str) -> None:
    """Search rows among themselves with products in a number format and the parts up to a level."""
    from detect.search import candidates, knn, tiles

    least = candidates.MIN_PARTITION_ROWS if level == "cells" else len(x) + 1
    side = tiles.TILE if level != "products" else len(x)
    with (
        mock.patch.object(candidates, "fast_bfloat16", return_value=number == "bfloat16"),
        mock.patch.object(candidates, "MIN_PARTITION_ROWS", least),
        mock.patch.object(tiles, "TILE", side),
    ):
        knn.nearest(x, x, 17, self_rows=np.arange(len(x)), device="cpu")


# --- memory -------------------------------------------------------------------------------------------------------


@section("memory")
def memory(quick: bool) -> Iterator[Ratio | Check]:
    """Peak memory of the full scope, 512 wide, k = 17, above the embeddings"""
    n = 50_000 if quick else 200_000
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "experiments.bench", "--measure-memory", str(n)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield Ratio(
        f"{n:,} points, gigabytes above the embeddings",
        float(done.stdout.split()[-1]),
        1.5,
        unit="GB",
        below=True,
        seconds=time.perf_counter() - start,
    )


def peak_above_embeddings(n: int) -> float:
    """Gigabytes by which this process grows at most in a full-scope search (Linux: the kernel's own peak)."""
    import torch  # noqa: F401  its own memory is no part of the search

    from detect import Embeddings, NeighbourSearch, find_neighbours

    embeddings = Embeddings.of(clustered(n))
    find_neighbours(Embeddings.of(clustered(2048)), 17, NeighbourSearch())
    gc.collect()
    with open("/proc/self/clear_refs", "w") as control:
        control.write("5")  # the peak starts anew, from what is held now
    before = _kilobytes("VmRSS")
    find_neighbours(embeddings, 17, NeighbourSearch())
    return (_kilobytes("VmHWM") - before) / 2**20


def _kilobytes(name: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))
