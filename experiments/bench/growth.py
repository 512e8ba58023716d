"""Time and peak memory of each stage against the number of samples: `python -m experiments.bench growth`.

    growth.csv           a row for each stage and each number of samples, written when it is measured
    growth.md            the same as a table, with the power of n that the last two sizes show
    growth-seconds.png, growth-memory.png

Pictures, captions and embeddings are simulated, so nothing is read from disk and no model needs to be trained. What
a stage takes is estimated from the size before; it is left out where that is more than is left of the budget, or
more than `LONGEST`.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.bench.growth_stages import STAGES, Row, Simulated
from experiments.bench.report import Note, long_run, write_rows

ROWS, QUICK_ROWS = (10_000, 30_000, 100_000, 300_000, 1_000_000), (500, 1_500)
WARM_UP = 300  # samples of a first round, in which packages are loaded
LONGEST = 1800.0  # seconds


@long_run("growth")
def run(budget: float, out: Path, quick: bool) -> int:
    """Time and peak memory of each stage against the number of samples"""
    out.mkdir(parents=True, exist_ok=True)
    measured: list[Row] = []
    try:
        write_rows(out / "growth.csv", Row, measure(QUICK_ROWS if quick else ROWS, budget), _printed, measured)
    finally:  # also where it was interrupted
        if measured:
            write_table(measured, out / "growth.md")
            draw(measured, out)
    print(f"written: {out}/growth.csv, growth.md, growth-seconds.png, growth-memory.png")
    return 0


def measure(sizes: Sequence[int], budget: float) -> Iterator[Row | Note]:
    """Each stage at each size, from the smallest on; a note for what would take too long."""
    end = time.perf_counter() + budget
    last: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        given = Simulated(WARM_UP, Path(folder))
        for stage in STAGES:
            stage.measure(given)
    for n in sizes:
        with tempfile.TemporaryDirectory() as folder:
            given = Simulated(n, Path(folder))
            for stage in STAGES:
                before = last.get(stage.name)
                expected = 0.0 if before is None else before.seconds * (n / before.rows) ** stage.power
                if expected > min(LONGEST, end - time.perf_counter()):
                    yield Note(f"{stage.name}, {n:,}", f"left out: it would take about {expected:,.0f} s")
                    continue
                yield (row := stage.measure(given))
                last[stage.name] = row


def _printed(row: Row) -> str:
    return (
        f"  {row.stage:<42} {row.rows:>9,}  {row.seconds:9.3f} s  {row.cpu_seconds:9.3f} s of processors  "
        f"{row.megabytes:9.1f} MB"
    )


def write_table(measured: Sequence[Row], file: Path) -> None:
    """Markdown: a line for each stage, with its seconds and megabytes, and the power of n of the last two sizes."""
    sizes = sorted({row.rows for row in measured})
    lines = [f"| stage | {' | '.join(f'{n:,}' for n in sizes)} | grows as |", f"|{'---|' * (len(sizes) + 2)}"]
    for name, rows in _by_stage(measured).items():
        at = {row.rows: f"{row.seconds:.3g} s, {row.megabytes:,.0f} MB" for row in rows}
        lines.append(f"| {name} | {' | '.join(at.get(n, '') for n in sizes)} | {_power(rows)} |")
    file.write_text("\n".join(lines) + "\n")


def _power(rows: Sequence[Row]) -> str:
    """n to which power the seconds of the last two sizes are."""
    if len(rows) < 2 or min(row.seconds for row in rows[-2:]) <= 0:
        return ""
    a, b = rows[-2:]
    return f"n^{math.log(b.seconds / a.seconds) / math.log(b.rows / a.rows):.2f}"


def _by_stage(measured: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in sorted(measured, key=lambda row: row.rows):
        found.setdefault(row.stage, []).append(row)
    return found


def draw(measured: Sequence[Row], out: Path) -> None:
    """Seconds, and megabytes, against n: one figure each, with a line for each stage."""
    from experiments.bench.growth_figure import Panel, draw_growth

    seconds, memory = Panel("seconds"), Panel("peak memory")
    for name, rows in _by_stage(measured).items():
        seconds.lines[name] = [(row.rows, max(row.seconds, 1e-4)) for row in rows]
        if known := [(row.rows, max(row.megabytes, 1.0)) for row in rows if not math.isnan(row.megabytes)]:
            memory.lines[name] = known
    draw_growth(out / "growth-seconds.png", [seconds], 1, "Seconds of each stage", "s")
    if memory.lines:
        draw_growth(out / "growth-memory.png", [memory], 1, "Peak memory of each stage, above its inputs", "MB")
