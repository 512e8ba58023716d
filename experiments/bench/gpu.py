"""A section of `python -m experiments.bench`: is the GPU right, and how fast is it?

The checks compare the device with this CPU: neighbour tables against brute force in float64, the loss of a training
step, embeddings, detectors' scores. Then training, embedding and the neighbour search are measured; the search is
compared with the device's rate of large matrix products in the same run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.gpu_rates import embedding_rate, gpus, product_rates, search_rate
from experiments.bench.report import Check, Note, Ratio, clustered, section


@section("gpu", gpu=True)
def gpu(quick: bool) -> Iterator[Ratio | Check | Note]:
    """Is the GPU right, against this CPU, and how fast is it: checks, training, embedding, neighbours"""
    from experiments.bench.processes import process_checks
    from experiments.bench.training import training

    yield from neighbour_checks(*((4_000, 128) if quick else (40_000, 256)))  # tiles off the diagonal too
    yield from model_checks("cuda:0", 512 if quick else 4_096)
    if (count := gpus()) > 1:
        yield from process_checks("cuda:0", count, 512 if quick else 4_096)
    yield from training(quick)
    yield from embedding_rate("cuda:0", "RN50", 224, 2_048 if quick else 16_384)
    rates = product_rates("cuda:0", 4_096 if quick else 8_192)
    yield from rates.values()
    for scope, n, k in (("full", 1_000_000, 65), ("batch", 2_300_000, 64)):
        yield from search_rate(scope, n // 20 if quick else n, 1024, k, rates["bfloat16"].value)


def neighbour_checks(n: int, d: int, k: int = 17, batch: int = 2048) -> Iterator[Check]:
    """The torch backend, on the GPU if there is one, against brute force in float64, for all points and in batches.

    Where the products' rounding would show: clusters, noise, and duplicates far from the origin.
    """
    from detect import DAO, LOF, SLOF, Embeddings, KDistance, Neighbours, NeighbourSearch, find_neighbours
    from detect.search.neighbours import batch_rows

    rng = np.random.default_rng(0)
    far = clustered(n, d) + np.float32(30)
    far[1 :: max(2, n // 200)] = far[0 : -1 : max(2, n // 200)]
    points = {"clusters": clustered(n, d), "noise": rng.standard_normal((n, d), np.float32), "far duplicates": far}
    for name, x in points.items():
        table = find_neighbours(Embeddings.of(x), k, NeighbourSearch(backend="torch"))
        true, rows = brute_force(x, k)
        yield _same_table(f"{n:,} x {d}, {name}, full scope, against float64", table, x, true)
        if name != "clusters":
            continue
        exact = Neighbours(true.astype(np.float32), rows, np.arange(n))
        for detector in (KDistance(k=k - 1), LOF(k=k - 1), SLOF(k=k - 1), DAO(k=k - 1)):
            scores = [detector.score_neighbours(t) for t in (table, exact)]
            agreement = _rank_agreement(*scores)
            yield Check(
                f"{type(detector).__name__}: ranks against those from float64",
                agreement >= 0.9999,
                f"Spearman {agreement:.6f}, >= 0.9999",
            )
        size = min(n, batch)
        table = find_neighbours(Embeddings.of(x), k, NeighbourSearch("batch", size, backend="torch"))
        batches = list(batch_rows(n, size, 0))
        rows = np.concatenate([rows for rows, _ in batches])
        true = np.concatenate([brute_force(x[rows], k)[0] for rows, _ in batches])
        yield _same_table(f"{n:,} x {d}, {name}, batches of {size}, against float64", table, x[rows], true)


def brute_force(x: np.ndarray, k: int, block: int = 256, device: str = "cpu") -> tuple[np.ndarray, np.ndarray]:
    """Distances (n, k) and rows (n, k) of each row's k nearest others, in float64 on `device`."""
    import torch

    points = torch.from_numpy(x).to(device).double()
    points -= points.mean(0)
    squares = points.square().sum(1)
    distances, rows = [], []
    for begin in range(0, len(points), block):
        part = points[begin : begin + block]
        products = squares[begin : begin + block, None] + squares - 2 * part @ points.T
        own = torch.arange(len(part), device=device)
        products[own, own + begin] = torch.inf
        near = products.topk(min(k + 8, len(points) - 1), dim=1, largest=False).indices
        exact = torch.linalg.vector_norm(points[near] - part[:, None], dim=2)  # products cancel between near rows
        exact, order = exact.topk(k, dim=1, largest=False)
        distances.append(exact)
        rows.append(near.gather(1, order))
    return torch.cat(distances).cpu().numpy(), torch.cat(rows).cpu().numpy()


def _same_table(
    what: str, table: Any, x: np.ndarray, true: np.ndarray, tolerance: float = 1e-5, device: str = "cpu"
) -> Check:
    """Both the distances and those of the named neighbours are the true ones; ties may be in any order."""
    import torch

    own = np.arange(len(x))[:, None]
    named = np.empty_like(true)
    points = torch.from_numpy(x).to(device).double()
    for begin in range(0, len(x), 256):
        part = slice(begin, begin + 256)
        apart = points[torch.from_numpy(table.indices[part]).to(device)] - points[part, None]
        named[part] = torch.linalg.vector_norm(apart, dim=2).cpu().numpy()
    scale = np.maximum(true, 1e-3 * np.abs(true).max())  # the distance of duplicates is 0
    error = max(float((np.abs(found - true) / scale).max()) for found in (table.distances, named))
    strange = int((table.indices == own).sum())
    strange += int((np.diff(np.sort(table.indices, axis=1), axis=1) == 0).sum())
    return Check(
        what,
        error <= tolerance and not strange,
        f"largest relative error {error:.1e}, <= {tolerance:.0e}; {strange} rows with themselves or twice, 0",
    )


def model_checks(device: str, pairs: int) -> Iterator[Check]:
    """One training step, then a trained model's embeddings and scores, on `device` against the CPU."""
    from experiments.clip import load_model
    from experiments.clip.embed import embed
    from experiments.data.pairs import open_pairs
    from experiments.data.shapes.source import Shapes

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Shapes(pairs=pairs, size=32, test_per_class=1).build(folder / "data", 1)
        source = open_pairs(folder / "data")
        yield from _step_checks(device, source, folder)
        settings = {"epochs": 8, "batch_size": min(128, pairs // 4), "lr": 2e-3, "clip_norm": 1.0}
        history = _losses(device, source, folder / "model", **settings)
        first, last = history[:, 0].mean(), history[:, -1].mean()
        yield Check("eight epochs: the loss is finite and falls", bool(last < first), f"{first:.3f} to {last:.3f}")
        there, here = (embed(load_model(folder / "model", place), source) for place in (device, "cpu"))
        yield from _embedding_checks(there, here)


def _losses(device: str, source: Any, folder: Path, **settings: Any) -> np.ndarray:
    """(n, epochs) losses of the samples in a training on `device`."""
    from experiments.clip import SmallCLIP
    from experiments.training.config import TrainConfig
    from experiments.training.crops import Shift
    from experiments.training.trainer import train

    folder.mkdir()
    config = TrainConfig(warmup_epochs=0, augment=Shift(3), **settings)
    train(SmallCLIP(), config, source, folder, seed=0, device=device)
    losses: np.ndarray = np.load(folder / "losses.npy")
    return losses


def _step_checks(device: str, source: Any, folder: Path) -> Iterator[Check]:
    """The first step on all pairs, on `device` against the CPU's float32."""

    def step(place: str, name: str, precision: str) -> np.ndarray:
        return _losses(place, source, folder / name, epochs=1, batch_size=len(source), precision=precision)[:, 0]

    expected = step("cpu", "step on the CPU", "float32")
    for precision, tolerance in (("float32", 0.01), ("auto", 0.05)):
        found = step(device, precision, precision)
        error = float(np.abs(found - expected).max() / expected.mean())
        yield Check(
            f"first training step ({precision}): each sample's loss against the CPU's float32",
            error <= tolerance,
            f"largest error {error:.1e} of the mean, <= {tolerance:g}",
        )


def _embedding_checks(there: Any, here: Any) -> Iterator[Check]:
    """Embeddings of the device against those of the CPU, and what detectors make of them."""
    from detect import DAO, SLOF

    for part in ("image", "text"):
        one, other = getattr(there, part), getattr(here, part)
        norms = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
        cosine = float(((one * other).sum(1) / norms[0] / norms[1]).min())
        yield Check(
            f"{part} embeddings of the embed stage against the CPU's float32",
            cosine >= 0.999,
            f"smallest cosine {cosine:.5f}, >= 0.999",
        )
    for detector in (SLOF(k=16), DAO(k=16)):
        agreement = _rank_agreement(detector.score(there), detector.score(here))
        yield Check(
            f"{type(detector).__name__} on these embeddings: ranks against the CPU's",
            agreement >= 0.95,
            f"Spearman {agreement:.4f}, >= 0.95",
        )


def _rank_agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)
