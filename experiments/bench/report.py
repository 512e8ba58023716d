"""What every section of the benchmark shares: its figures, its checks, turn-taking, clustered data."""

from __future__ import annotations

import csv
import functools
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np


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
        decimals = 1 if abs(self.value) >= 10 else 3 if abs(self.value) < 1 else 2
        return f"  {self.what:<76} {self.value:8.{decimals}f} {self.unit:<4} {verdict:<22} {seconds}".rstrip()


@dataclass(frozen=True)
class Check:
    """Whether a result is right: what was found, and what it must be."""

    what: str
    passed: bool
    found: str

    def __str__(self) -> str:
        return f"  {self.what:<76} {'pass' if self.passed else 'FAILED':>8}      {self.found}"


@dataclass(frozen=True)
class Note:
    """What a run has to say beside figures: a kernel of a profile, a peer that is not there."""

    what: str
    text: str

    def __str__(self) -> str:
        return f"  {self.what:<76} {self.text}"


Section = Callable[[bool], Iterator[Ratio | Check | Note]]
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


LongRun = Callable[[float, Path, bool], int]
LONG_RUNS: dict[str, LongRun] = {}


def long_run(name: str) -> Callable[[LongRun], LongRun]:
    """Register a run that takes hours at full size: (budget in seconds, folder for its files, quick) -> how many
    checks or steps failed. It is run only if it is named. Its docstring's first line is its heading."""

    def register(function: LongRun) -> LongRun:
        LONG_RUNS[name] = function
        return function

    return register


def best_of(rounds: int, *sides: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Best seconds of each side, the sides taking turns.

    clock: such as `time.process_time`, processor seconds of all threads, for a machine that others use as well.
    """
    best = [float("inf")] * len(sides)
    for _ in range(rounds):
        for number, side in enumerate(sides):
            gc.collect()
            start = clock()
            side()
            best[number] = min(best[number], clock() - start)
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


def write_rows(
    file: Path, kind: type, lines: Iterator[Any], printed: Callable[[Any], str], measured: list[Any]
) -> None:
    """Print each line; write those of the dataclass `kind` to a CSV file, and add them to `measured`."""
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, [field.name for field in fields(kind)])
        writer.writeheader()
        for line in lines:
            print(printed(line) if isinstance(line, kind) else line, flush=True)
            if isinstance(line, kind):
                measured.append(line)
                writer.writerow({field.name: getattr(line, field.name) for field in fields(kind)})
                opened.flush()
