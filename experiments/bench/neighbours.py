"""Speed and memory against the usual ways: `python -m experiments.bench [section ...] [--quick] [--threads N]`.

All ratios come from one run on the same threads; the two sides take turns and the best time of each counts, as the
machine may have other work. A section is a function that yields `Ratio`s and `Check`s; add one with
`@section("name")`. A check that fails makes the command end with status 1.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.runtime.console import replace_unprintable


@dataclass(frozen=True)
class Ratio:
    """One figure: how many times faster we are or, with another `unit`, just a figure.

    aim: what it should reach at least (at most, if `below`).  seconds: our time, to know what was timed.
    """

    what: str
    value: float
    aim: float | None = None
    unit: str = "x"
    below: bool = False
    seconds: float | None = None

    def __str__(self) -> str:
        verdict = ""
        if self.aim is not None:
            met = self.value <= self.aim if self.below else self.value >= self.aim
            verdict = f"aim {'<=' if self.below else '>='} {self.aim:g}  {'met' if met else 'MISSED'}"
        seconds = "" if self.seconds is None else f"(ours {self.seconds:.2f} s)"
        return f"  {self.what:<76} {self.value:8.1f} {self.unit:<4} {verdict:<22} {seconds}".rstrip()


@dataclass(frozen=True)
class Check:
    """Whether a result is right: what was found, and what it must be."""

    what: str
    passed: bool
    found: str

    def __str__(self) -> str:
        return f"  {self.what:<76} {'pass' if self.passed else 'FAILED':>8}      {self.found}"


Section = Callable[[bool], Iterator[Ratio | Check]]
SECTIONS: dict[str, Section] = {}
ON_GPUS: set[str] = set()  # sections that need one


def section(name: str, *, gpu: bool = False) -> Callable[[Section], Section]:
    """Register a section: (quick) -> ratios and checks. Its docstring's first line is its heading."""

    def register(function: Section) -> Section:
        SECTIONS[name] = function
        if gpu:
            ON_GPUS.add(name)
        return function

    return register


def best_of(rounds: int, *sides: Callable[[], Any]) -> list[float]:
    """Best seconds of each side, the sides taking turns."""
    best = [float("inf")] * len(sides)
    for _ in range(rounds):
        for number, side in enumerate(sides):
            gc.collect()
            start = time.perf_counter()
            side()
            best[number] = min(best[number], time.perf_counter() - start)
    return best


def clustered(n: int, d: int = 512, seed: int = 0, device: str = "cpu") -> np.ndarray:
    """(n, d) float32 in 100 groups with 24 directions of spread each: more like embeddings than noise is."""
    import torch

    generator = torch.Generator(device).manual_seed(seed)
    normal = functools.partial(torch.randn, generator=generator, device=device)
    centres, spread = normal(100, d), normal(100, 24, d) / 5
    group = torch.randint(100, (n,), generator=generator, device=device)
    x = normal(n, d).mul_(0.1).add_(centres[group])
    for number in range(100):
        rows = (group == number).nonzero().flatten()
        x[rows] += normal(len(rows), 24) @ spread[number]
    return x.cpu().numpy()


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


@section("training")
def training(quick: bool) -> Iterator[Ratio | Check]:
    """Samples a second of decoding alone, of RN50's training step alone, and of the two together"""
    from experiments.bench.training import training as figures

    yield from figures(quick)


@section("gpu", gpu=True)
def gpu(quick: bool) -> Iterator[Ratio | Check]:
    """Is the GPU right, against this CPU, and how fast is it: checks, training, embedding, neighbours"""
    from experiments.bench.gpu import gpu as figures

    yield from figures(quick)


# --- the command -------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    replace_unprintable()
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", help=f"which of {', '.join(SECTIONS)}; all, if none is named")
    parser.add_argument(
        "--quick", action="store_true", help="smaller sizes and fewer rounds: minutes become seconds"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="for both sides alike")
    parser.add_argument("--measure-memory", type=int, metavar="N", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.sections) - set(SECTIONS))
    if unknown:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    _set_threads(options.threads)
    graphics = _graphics()
    if graphics is None and (asked := sorted(ON_GPUS.intersection(options.sections))):
        parser.error(f"section {', '.join(asked)} needs a GPU, and torch sees none here")
    if options.measure_memory:
        print(peak_above_embeddings(options.measure_memory))
        return
    machine = f"{_processor()}, {options.threads} threads, {graphics or 'no GPU'}"
    print(f"{machine}{', quick' if options.quick else ''}; x: how many times faster ours is than the other")
    failed = 0
    for name in options.sections or SECTIONS:
        heading = (SECTIONS[name].__doc__ or "").splitlines()[0]
        if name in ON_GPUS and graphics is None:
            print(f"{name}: left out, as torch sees no GPU here ({heading})", flush=True)
            continue
        if name == "training" and not options.sections and graphics is not None:
            continue  # a part of section gpu
        print(f"{name}: {heading}", flush=True)
        for line in SECTIONS[name](options.quick):
            print(line, flush=True)
            failed += isinstance(line, Check) and not line.passed
    if failed:
        print(f"{failed} checks FAILED")
        raise SystemExit(1)


def _set_threads(threads: int) -> None:
    """The same number for every library; before any of them is imported, as OpenMP reads it only then."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads would slow each other down
    import faiss
    import torch

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)


def _graphics() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
