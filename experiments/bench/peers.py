"""k-dist, LOF, SLOF and DAO beside other packages on a CPU: `python -m experiments.bench peers`.

    peers.csv   a row for each cell and each side, written when it is measured
    peers.md    seconds of ours, and how many times as long each other side took
    peers.png   time against n, on logarithmic axes

A cell is a data set, a scope and a detector. Cheap cells come first, those of the width 512 before the others. What
a side takes is estimated from its cells so far; a side is left out of a cell where that is more than is left of the
budget, or more than `LONGEST`. A package that is not installed is left out, and a line says so.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.bench.peer_sides import OURS, SIDES, Score, missing
from experiments.bench.report import Note, clustered, long_run, write_rows

ROWS, WIDTHS, QUICK_ROWS, QUICK_WIDTHS = (
    (2_048, 8_192, 20_000, 50_000, 200_000),
    (128, 512, 1024),
    (512, 2_048),
    (128,),
)
BATCH = 2048
FIRST_WIDTH = 512
MOST_ROWS = {"SLOF": 20_000, "DAO": 20_000}  # their table is that of k-dist and LOF; the rest takes milliseconds
LONGEST = 1800.0  # seconds
AGAIN = 1.0  # a side that takes fewer seconds is measured `ROUNDS` times
ROUNDS = 3
FIRST_GUESS = 2e-11  # seconds for a product of two numbers, before anything is measured


@dataclass(frozen=True)
class Cell:
    """rows, width: of the data.  data: "clustered" or "noise".  scope: "full" or "batch"."""

    detector: str
    scope: str
    data: str
    rows: int
    width: int

    @property
    def work(self) -> float:
        """Products of two numbers that a search of all pairs takes."""
        return float(self.rows) * (self.rows if self.scope == "full" else BATCH) * self.width

    def __str__(self) -> str:
        scope = "" if self.scope == "full" else f", batches of {BATCH:,}"
        return f"{self.detector}, {self.rows:,} x {self.width} {self.data}{scope}"


@dataclass(frozen=True)
class Row:
    """What one side took in one cell: best wall-clock and processor seconds.

    ratio: its wall-clock seconds divided by ours.  off: largest relative difference from our scores.
    """

    detector: str
    scope: str
    data: str
    rows: int
    width: int
    side: str
    seconds: float
    cpu_seconds: float
    ratio: float
    off: float


def cells(rows: Sequence[int], widths: Sequence[int]) -> list[Cell]:
    """All cells, in order of worth: by the work they take, those of `FIRST_WIDTH` as if they took a tenth."""
    found = [
        Cell(detector, scope, data, n, d)
        for detector in SIDES
        for scope in ("full", "batch")
        for data in ("clustered", "noise")
        for n in rows
        for d in widths
        if n <= MOST_ROWS.get(detector, n) and (scope == "full" or n > BATCH)
    ]
    return sorted(found, key=lambda cell: cell.work / (10 if cell.width == FIRST_WIDTH else 1))


@long_run("peers")
def run(budget: float, out: Path, quick: bool) -> int:
    """LOF, k-dist, SLOF and DAO on a CPU, against scikit-learn, scikit-learn-intelex, PyOD and faiss"""
    out.mkdir(parents=True, exist_ok=True)
    for note in missing():
        print(note)
    planned = cells(QUICK_ROWS, QUICK_WIDTHS) if quick else cells(ROWS, WIDTHS)
    measured: list[Row] = []
    try:
        write_rows(out / "peers.csv", Row, measure(planned, budget), _printed, measured)
    finally:  # also where it was interrupted
        if measured:
            write_table(measured, out / "peers.md")
            draw(measured, out / "peers.png")
    print(f"written: {out}/peers.csv, peers.md, peers.png")
    return 0


def measure(planned: Sequence[Cell], budget: float) -> Iterator[Row | Note]:
    """The rows of each cell, ours first; a note for what did not fit into `budget` seconds."""
    end = time.perf_counter() + budget
    rates: dict[tuple[str, str, str], float] = {}  # detector, scope, side -> seconds for a product
    held: tuple[tuple[int, int, str], np.ndarray] | None = None  # the data of one cell
    dropped = 0
    for detector in dict.fromkeys(cell.detector for cell in planned):
        for make in SIDES[detector].values():  # a first time, in which packages are loaded
            if (score := make()) is not None:
                score(clustered(200, 8), None)
    for cell in planned:
        available = {name: make() for name, make in SIDES[cell.detector].items()}
        sides: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
        left = end - time.perf_counter()
        for name, score in available.items():
            if score is None:
                continue
            seconds = rates.get((cell.detector, cell.scope, name), FIRST_GUESS) * cell.work
            if seconds > LONGEST:
                yield Note(str(cell), f"{name} left out: it would take about {seconds:,.0f} s")
            if seconds > min(left, LONGEST):
                dropped += seconds <= LONGEST
                continue
            left -= seconds
            sides[name] = _in_scope(score, cell)
        if OURS not in sides or len(sides) == 1:
            continue
        key = (cell.rows, cell.width, cell.data)
        if held is None or held[0] != key:
            held = key, _points(cell)
        found, scores = _timed(sides, held[1])
        for name, (seconds, cpu_seconds) in found.items():
            rates[cell.detector, cell.scope, name] = seconds / cell.work
            off = np.abs(scores[name] / scores[OURS] - 1).max()
            ratio = seconds / found[OURS][0]
            yield Row(*_values(cell), name, round(seconds, 4), round(cpu_seconds, 4), round(ratio, 3), float(off))
    if dropped:
        yield Note("left out", f"{dropped} measurements that no longer fitted into the budget")


def _values(cell: Cell) -> tuple[str, str, str, int, int]:
    return cell.detector, cell.scope, cell.data, cell.rows, cell.width


def _points(cell: Cell) -> np.ndarray:
    if cell.data == "clustered":
        return clustered(cell.rows, cell.width)
    return np.random.default_rng(0).standard_normal((cell.rows, cell.width), np.float32)


def _in_scope(score: Score, cell: Cell) -> Callable[[np.ndarray], np.ndarray]:
    """x -> scores. Others know no batches: they are given one after the other, cut as ours cuts them."""
    return lambda x: score(x, BATCH if cell.scope == "batch" else None)


def _timed(
    sides: dict[str, Callable[[np.ndarray], np.ndarray]], x: np.ndarray
) -> tuple[dict[str, tuple[float, float]], dict[str, np.ndarray]]:
    """Best (wall-clock, processor) seconds of each side, the sides taking turns, and their scores."""
    best: dict[str, tuple[float, float]] = {}
    scores: dict[str, np.ndarray] = {}
    for number in range(ROUNDS):
        for name, score in sides.items():
            if number and best[name][0] > AGAIN:
                continue
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            scores[name] = score(x)
            took = time.perf_counter() - wall, time.process_time() - cpu
            before = best.get(name, took)
            best[name] = min(before[0], took[0]), min(before[1], took[1])
    return best, scores


def _printed(row: Row) -> str:
    cell = Cell(row.detector, row.scope, row.data, row.rows, row.width)
    ratio = "" if row.side == OURS else f"{row.ratio:6.2f} x ours"
    return f"  {cell!s:<58} {row.side:<28} {row.seconds:9.3f} s {row.cpu_seconds:9.3f} s of processors  {ratio}"


# --- table and figure -------------------------------------------------------------------------------------------


def write_table(measured: Sequence[Row], file: Path) -> None:
    """Markdown: a line for each cell; of the other sides, their seconds divided by ours, the smallest in bold."""
    sides = [name for name in dict.fromkeys(row.side for row in measured) if name != OURS]
    by_cell: dict[Cell, dict[str, Row]] = {}
    for row in measured:
        cell = Cell(row.detector, row.scope, row.data, row.rows, row.width)
        by_cell.setdefault(cell, {})[row.side] = row
    lines = [
        f"| detector | scope | data | rows | width | ours, s | {' | '.join(sides)} |",
        f"|{'---|' * (6 + len(sides))}",
    ]
    order = {name: place for place, name in enumerate(SIDES)}
    for cell in sorted(by_cell, key=lambda c: (order[c.detector], c.scope != "full", c.data, c.width, c.rows)):
        found = by_cell[cell]
        ratios = {name: found[name].ratio for name in sides if name in found}
        least = min(ratios, key=lambda name: ratios[name])
        shown = [f"**{ratios[n]:.2f}**" if n == least else f"{ratios[n]:.2f}" if n in ratios else "" for n in sides]
        start = [
            cell.detector,
            cell.scope,
            cell.data,
            f"{cell.rows:,}",
            str(cell.width),
            f"{found[OURS].seconds:.3f}",
        ]
        lines.append(f"| {' | '.join([*start, *shown])} |")
    below = sum(min(row.ratio for row in found.values()) < 1 for found in by_cell.values())
    lines += ["", f"Another side is faster than ours in {below} of {len(by_cell)} cells."]
    file.write_text("\n".join(lines) + "\n")


def draw(measured: Sequence[Row], file: Path) -> None:
    """Time against n: a panel for each width, data and scope, of the detector that was measured most."""
    from experiments.bench.growth_figure import Panel, draw_growth

    counts = {name: sum(row.detector == name for row in measured) for name in SIDES}
    detector = "LOF" if counts["LOF"] else max(counts, key=lambda name: counts[name])
    panels: dict[tuple[bool, str, int], Panel] = {}
    for row in measured:
        if row.detector != detector:
            continue
        scope = "all rows" if row.scope == "full" else f"batches of {BATCH:,}"
        title = f"{row.data}, {row.width} wide, {scope}"
        panel = panels.setdefault((row.scope != "full", row.data, row.width), Panel(title))
        panel.lines.setdefault(row.side, []).append((row.rows, row.seconds))
    ordered = [panels[key] for key in sorted(panels)]
    columns = len({width for _, _, width in panels})
    draw_growth(file, ordered, columns, f"{detector}: seconds against the number of rows", "s", strong=OURS)
