"""How fast the GPU is: embedding, matrix products, the neighbour search; for the section `gpu` of the benchmark."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.bench.report import Ratio, clustered

GIGABYTE = 2**30


@dataclass(frozen=True)
class _Repeated:
    """`count` samples that are few images over and over, in memory: nothing is decoded."""

    pixels: np.ndarray
    count: int

    def __len__(self) -> int:
        return self.count

    @property
    def ids(self) -> np.ndarray:
        return np.arange(self.count)

    @property
    def captions(self) -> list[str]:
        return ["a photo of a banana"] * self.count

    @property
    def size(self) -> int:
        return self.pixels.shape[1]

    def images(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[np.asarray(rows) % len(self.pixels)]


def embedding_rate(device: str, name: str, size: int, count: int, batch: int = 512) -> Iterator[Ratio]:
    """Images per second through the embed stage, without decoding."""
    from experiments.clip import OpenCLIP
    from experiments.clip.embed import embed

    model = OpenCLIP(name, size=size).build(())
    model.clip.to(device).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), dtype=np.uint8)
    embed(model, _Repeated(pixels, batch), batch=batch)  # warm-up: memory, kernels
    seconds, peak = _timed(device, lambda: embed(model, _Repeated(pixels, count), batch=batch))
    yield Ratio(f"embedding with {name}, {count:,} images in memory", count / seconds, unit="/s", seconds=seconds)
    if peak is not None:
        yield Ratio("peak memory of that", peak, unit="GB")


def product_rates(device: str, side: int) -> dict[str, Ratio]:
    """The device's rate of large square matrix products, for bfloat16, TF32 and float32."""
    import torch

    rates = {}
    rounds = 20 if device.startswith("cuda") else 1
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision

    def multiply(a: Any, b: Any) -> None:
        for _ in range(rounds):
            a @ b

    for name, kind, precision in (
        ("bfloat16", torch.bfloat16, "ieee"),
        ("TF32", torch.float32, "tf32"),
        ("float32", torch.float32, "ieee"),
    ):
        a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
        settings.fp32_precision = precision
        try:
            multiply(a, b)  # warm-up
            seconds, _ = _timed(device, functools.partial(multiply, a, b))
        finally:
            settings.fp32_precision = before
        what = f"a product of {side:,} x {side:,} in {name}"
        rates[name] = Ratio(what, 2 * side**3 * rounds / seconds / 1e12, unit="TF/s")
    return rates


def search_rate(scope: str, n: int, d: int, k: int, peak_rate: float, batch: int = 2048) -> Iterator[Ratio]:
    """Seconds of an exact search; its products as a share of `peak_rate`, in 10^12 operations per second."""
    from detect import Embeddings, NeighbourSearch, find_neighbours

    device = "cuda:0" if gpus() else "cpu"
    embeddings = Embeddings.of(clustered(n, d, device=device))
    search = NeighbourSearch(scope, batch, backend="torch")
    find_neighbours(Embeddings.of(clustered(4 * k, d)), k, NeighbourSearch(backend="torch"))  # warm-up
    seconds, peak = _timed(device, lambda: find_neighbours(embeddings, k, search))
    among = "all" if scope == "full" else f"batches of {batch:,}"
    yield Ratio(f"neighbours, {n:,} x {d} among {among}, k = {k}, exact", seconds, unit="s")
    # One product serves both rows of a pair.
    share = 100 * n * (n if scope == "full" else min(n, batch)) * d / seconds / 1e12 / peak_rate
    yield Ratio("of the bfloat16 rate, with one product for each pair of rows", share, unit="%")
    if peak is not None:
        yield Ratio("peak memory of that", peak, unit="GB")


def _timed(device: str, work: Callable[[], Any]) -> tuple[float, float | None]:
    """Seconds, and on a GPU the peak of its memory in gigabytes."""
    import torch

    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    return seconds, torch.cuda.max_memory_allocated(device) / GIGABYTE if cuda else None


def gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
