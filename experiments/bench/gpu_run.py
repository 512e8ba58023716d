"""One short run on a GPU: checks, then figures in order of worth, each printed and written when it is there.

`python -m experiments.bench gpu --budget MINUTES --out FOLDER` runs these steps. A step whose rough time does not
fit in what is left of the budget is left out and says so; one that fails says why, and the rest goes on.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from experiments.bench import gpu_search
from experiments.bench.gpu_rates import product_rates
from experiments.bench.report import Check, Note, Ratio, long_run

Line = Ratio | Check | Note


@dataclass(frozen=True)
class Step:
    """seconds: how long it takes on one H100 at most, roughly.  work: (sizes) -> its lines."""

    name: str
    seconds: float
    work: Callable[[Sizes], Iterator[Line]]


@dataclass(frozen=True)
class Sizes:
    """The sizes of one run; `TINY` ones run on a CPU within seconds, as a test.

    rows: of the checks, of the profiled search, and of the large one.  k: neighbours.  batch: of a training step.
    """

    device: str = "cuda:0"
    rows: tuple[int, int, int] = (40_000, 250_000, 1_000_000)
    d: int = 1024
    k: int = 65
    side: int = 8192
    models: tuple[tuple[str, int], ...] = (("RN50", 224), ("ViT-B-16", 224))
    batch: int = 256
    training_steps: int = 10


TINY = Sizes("cpu", (500, 400, 500), 32, 5, 128, (("ViT-S-32-alt", 32),), 4, 1)


@long_run("gpu")
def short_run(budget: float, out: Path, quick: bool) -> int:
    """The steps below, at full size, as many as fit"""
    return run(budget, out)


def run(budget: float, out: Path, sizes: Sizes | None = None) -> int:
    """Take the steps that fit in `budget` seconds, and say how many steps or checks failed.

    out: a folder; each line is added to its file figures.jsonl.
    """
    sizes, begin, failed = sizes or Sizes(), time.perf_counter(), 0
    out.mkdir(parents=True, exist_ok=True)
    with (out / "figures.jsonl").open("a") as file:

        def report(step: Step, line: Line) -> None:
            print(line, flush=True)
            row = {"step": step.name, "at": round(time.perf_counter() - begin, 1), "kind": type(line).__name__}
            file.write(json.dumps(row | asdict(line), default=lambda value: value.item()) + "\n")
            file.flush()

        for step in STEPS:
            print(f"{step.name}: at {time.perf_counter() - begin:.1f} s", flush=True)
            if time.perf_counter() - begin + step.seconds > budget:
                report(step, Note("left out", f"it needs about {step.seconds:g} s, more than the budget has left"))
                continue
            try:
                for line in step.work(replace(sizes)):
                    report(step, line)
                    failed += isinstance(line, Check) and not line.passed
            except Exception as error:  # one step's fault must not cost the others' figures
                failed += 1
                report(step, Check("the step ends well", False, f"{type(error).__name__}: {error}"[:2000]))
    return failed


def _checks(sizes: Sizes) -> Iterator[Line]:
    yield from gpu_search.exactness(sizes.device, sizes.rows[0], min(256, sizes.d), sizes.k)


def _rounding(sizes: Sizes) -> Iterator[Line]:
    yield from gpu_search.rounding(sizes.device, sizes.side // 4, sizes.d)


def _blocks(sizes: Sizes) -> Iterator[Line]:
    yield from gpu_search.filter_blocks(sizes.device, sizes.side, sizes.d)


def _profiles(sizes: Sizes) -> Iterator[Line]:
    points = gpu_search.points(sizes.device, sizes.rows[1], sizes.d)
    for name in gpu_search.WAYS:
        yield from gpu_search.profile(sizes.device, points, sizes.k, name)
    yield from gpu_search.batches(sizes.device, points, sizes.k)


def _large(sizes: Sizes) -> Iterator[Line]:
    rate = product_rates(sizes.device, sizes.side)["bfloat16"]
    yield rate
    points = gpu_search.points(sizes.device, sizes.rows[2], sizes.d)
    yield from gpu_search.old_and_new(sizes.device, points, sizes.k, rate.value)
    yield from gpu_search.transfers(sizes.device, points)


def _noise(sizes: Sizes) -> Iterator[Line]:
    points = gpu_search.noise(sizes.device, sizes.rows[1], sizes.d)
    yield from gpu_search.old_and_new(sizes.device, points, sizes.k, None)


def _peers(sizes: Sizes) -> Iterator[Line]:
    yield from gpu_search.peers(sizes.device, gpu_search.points(sizes.device, sizes.rows[1], sizes.d), sizes.k)


def _training(sizes: Sizes) -> Iterator[Line]:
    from experiments.bench.training import step_ratio

    for name, size in sizes.models:
        with tempfile.TemporaryDirectory() as folder:
            yield from step_ratio(name, size, sizes.batch, sizes.training_steps, sizes.device, Path(folder))


def _decoding(sizes: Sizes) -> Iterator[Line]:
    from experiments.bench.training import batch_decoding, make_shards

    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder), max(64, 2 * sizes.batch), os.cpu_count() or 1)
        yield from batch_decoding(shards, sizes.device, sizes.batch, 8)


STEPS = [
    Step("exactness", 25, _checks),
    Step("rounding of products", 2, _rounding),
    Step("blocks of the filter", 15, _blocks),
    Step("profiles of 250,000 rows", 20, _profiles),
    Step("a million rows", 45, _large),
    Step("peers at 250,000 rows", 20, _peers),
    Step("training steps against open_clip's", 60, _training),
    Step("decoding JPEG files in batches", 30, _decoding),
    Step("250,000 rows of noise", 20, _noise),
]
