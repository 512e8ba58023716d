"""Speed and memory against the usual ways: `python -m experiments.bench [section ...] [--quick] [--threads N]`.

All ratios come from one run on the same threads; the two sides take turns and the best time of each counts, as the
machine may have other work. A section is a function that yields `Ratio`s and `Check`s; add one with
`@section("name")`. A check that fails makes the command end with status 1. The sections of `LONG_RUNS` take hours
and write files; each is run only if it alone is named, and `--budget` bounds it.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
from importlib.util import find_spec
from pathlib import Path

from experiments.bench import (  # noqa: F401  each registers its sections
    gpu,
    gpu_run,
    growth,
    neighbours,
    peers,
    step,
    training,
)
from experiments.bench.neighbours import peak_above_embeddings
from experiments.bench.report import LONG_RUNS, ON_GPUS, SECTIONS, Check
from experiments.runtime.console import replace_unprintable


def main(arguments: list[str] | None = None) -> None:
    replace_unprintable()
    options = _options(arguments)
    _set_threads(options.threads)
    graphics = _graphics()
    if options.measure_memory:
        print(peak_above_embeddings(options.measure_memory))
        return
    machine = f"{_processor()}, {options.threads} threads, {graphics or 'no GPU'}"
    print(f"{machine}{', quick' if options.quick else ''}; x: how many times faster ours is than the other")
    if options.single in LONG_RUNS and (options.single not in SECTIONS or options.budget is not None):
        budget = math.inf if options.budget is None else 60 * options.budget
        _exit(LONG_RUNS[options.single](budget, options.out or Path(f"bench-{options.single}"), options.quick))
        return
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
    _exit(failed)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, checked; `single`: the only section that is named, or None."""
    alone = [name for name in LONG_RUNS if name not in SECTIONS]
    parser = argparse.ArgumentParser(prog="python -m experiments.bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "sections",
        nargs="*",
        help=f"which of {', '.join(SECTIONS)}; these, if none is named; or one of {', '.join(alone)}",
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller sizes and fewer rounds: minutes become seconds"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="for both sides alike")
    parser.add_argument(
        "--budget",
        type=float,
        metavar="MINUTES",
        help=f"section {', '.join(LONG_RUNS)}: the most worthy figures, in at most this time",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help=f"where section {', '.join(LONG_RUNS)} writes its figures"
    )
    parser.add_argument("--measure-memory", type=int, metavar="N", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.sections) - {*SECTIONS, *alone})
    if unknown:
        parser.error(f"no section {', '.join(unknown)}; there are {', '.join([*SECTIONS, *alone])}")
    options.single = single = options.sections[0] if len(options.sections) == 1 else None
    if options.budget is not None and (single not in LONG_RUNS or not 0 < options.budget < 1e6):
        parser.error(f"--budget needs one of the sections {', '.join(LONG_RUNS)} alone, and minutes above 0")
    if single not in alone and (several := sorted(set(alone).intersection(options.sections))):
        parser.error(f"section {several[0]} takes hours: name it alone")
    if (asked := sorted(ON_GPUS.intersection(options.sections))) and _graphics() is None:
        parser.error(f"section {', '.join(asked)} needs a GPU, and torch sees none here")
    return options


def _exit(failed: int) -> None:
    if failed:
        print(f"{failed} checks FAILED")
        raise SystemExit(1)


def _set_threads(threads: int) -> None:
    """The same number for every library; before any of them is imported, as OpenMP reads it only then."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads would slow each other down
    import torch

    torch.set_num_threads(threads)
    if find_spec("faiss") is None:  # only the comparison with it needs it
        return
    import faiss

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
