"""The figures of a run's scores: ROC curves and score histograms.

Each function takes plain arrays or cells and returns a matplotlib `Figure`; `style.save` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from analysis.style import (
    CLEAN,
    FAINT,
    GREY,
    LINES,
    POISON,
    attack_label,
    detector_line,
    headed,
    panels,
    styled,
)
from analysis.tables import cell_label, is_control, is_raw, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Scored(Protocol):
    """A cell of a run, or of the store."""

    @property
    def row(self) -> Mapping[str, Any]: ...

    @property
    def scores(self) -> np.ndarray | None: ...


S = TypeVar("S", bound=Scored)


def scored(cells: Sequence[S]) -> list[S]:
    """The cells that have scores, best AUROC first."""
    done = [cell for cell in cells if cell.scores is not None and cell.row.get("status", "ok") == "ok"]
    return sorted(done, key=lambda cell: -_finite(cell.row.get("auroc")))


def headline(cells: Sequence[S]) -> list[S]:
    """The scored cells on normalised embeddings; for a detector that has none, its raw ones."""
    done = scored(cells)
    names = {cell.row["detector"] for cell in done if not is_raw(cell.row.get("normalise"))}
    return [cell for cell in done if not is_raw(cell.row.get("normalise")) or cell.row["detector"] not in names]


def heading(row: Mapping[str, Any], is_poison: np.ndarray) -> str:
    """What a run's figures show: `BadNets, seed 0: 100 of 20,000 samples poisoned, attack success rate 89.6 %`."""
    name = attack_label(str(row.get("attack", "?"))) + (", clean model" if row.get("train_on") == "clean" else "")
    text = name if row.get("seed") is None else f"{name}, seed {row['seed']}"
    text += f": {int(is_poison.sum()):,} of {len(is_poison):,} samples poisoned"
    asr = row.get("asr")
    return text if asr is None or asr != asr else f"{text}, attack success rate {percent(asr)}"


@styled
def roc(cells: Sequence[Scored], is_poison: np.ndarray) -> Figure:
    """True against false positive rate, linear and with a logarithmic false positive rate; a line per
    detector.

    Headline (normalised) cells are shown; the legend gives their AUROC in its order, and the raw one if it
    exists.
    """
    from matplotlib.ticker import FuncFormatter, NullLocator
    from sklearn.metrics import roc_curve

    shown = headline(cells)
    rows = [cell.row for cell in shown]
    clean = max(int((~is_poison).sum()), 1)
    lines = _labelled(cells, shown)
    legend = 0.85 + 0.07 * max((len(label) for _, label in lines), default=0)  # inches
    height = max(3.6, 0.35 + 0.187 * len(lines))
    figure, ((linear, log),) = panels(1, 2, (3.9, height), (0.6, legend, 0.62, 0.72), (0.35, 0), sharey=True)
    if not _both(is_poison, linear, log):
        lines = []
    for cell, label in lines:
        look = detector_line(str(cell.row["detector"]), [str(row["detector"]) for row in rows])
        false, true, _ = roc_curve(is_poison, cell.scores)
        linear.plot(false, true, label=label, **look)
        log.plot(np.maximum(false, 0.5 / clean), true, drawstyle="steps-post", **look)
    chance = np.geomspace(0.5 / clean, 1, 200)
    for axes in (linear, log):
        if lines:
            axes.plot(chance, chance, color=FAINT, linewidth=1.2, zorder=1)
        axes.set(ylim=(-0.02, 1.02))
    linear.set(xlabel="false positive rate", ylabel="true positive rate", title="ROC", xlim=(-0.02, 1.02))
    log.set(xscale="log", xlim=(0.5 / clean, 1), title="the same, false positive rate on a logarithmic axis")
    log.set_xlabel("false positive rate")
    # Plain numbers: powers of ten would be set as formulas, at a third of a figure's time.
    log.xaxis.set_major_formatter(FuncFormatter(lambda value, _: np.format_float_positional(value, trim="-")))
    log.xaxis.set_minor_locator(NullLocator())
    if lines:
        top = (
            log.get_position().x1 + 0.12 / figure.get_figwidth(),
            log.get_position().y1 + 0.3 / figure.get_figheight(),
        )
        placing: dict[str, Any] = {"alignment": "left", "fontsize": 8.5, "borderaxespad": 0, "handlelength": 3.6}
        figure.legend(loc="upper left", bbox_to_anchor=top, title="AUROC", **placing)
    note = f"{LINES}; grey: chance" if lines else ""
    headed(figure, heading(rows[0] if rows else {}, is_poison), note)
    return figure


def _labelled(cells: Sequence[Scored], shown: Sequence[Scored]) -> list[tuple[Scored, str]]:
    """Each shown cell with its entry in the legend, controls last: AUROC, name, and the raw AUROC if it exists."""
    rows = [cell.row for cell in shown]
    raw = {
        cell_label(c.row, [c.row for c in cells]): c.row for c in scored(cells) if is_raw(c.row.get("normalise"))
    }
    lines: list[tuple[Scored, str]] = []
    for cell in sorted(shown, key=lambda cell: is_control(cell.row)):
        name = cell_label(cell.row, rows)
        label = f"{number(cell.row.get('auroc'))}  {name}"
        if name in raw and raw[name] is not cell.row:
            label += f"  (raw {number(raw[name].get('auroc'))})"
        elif is_raw(cell.row.get("normalise")):
            label += "  (raw)"
        lines.append((cell, label + ("  control" if is_control(cell.row) else "")))
    return lines


@styled
def score_histograms(cells: Sequence[Scored], is_poison: np.ndarray) -> Figure:
    """Densities of the scores, clean against poisoned, a small panel per detector.

    Both densities are scaled to the same height, so that a handful of poisons stays visible beside thousands
    of clean samples. Values beyond the axis are drawn in its first and last bar.
    """
    from matplotlib.patches import Patch

    shown = sorted(headline(cells), key=lambda cell: is_control(cell.row))
    rows = [cell.row for cell in shown]
    columns = min(4, max(len(shown), 1))
    lines = -(-max(len(shown), 1) // columns)
    figure, axes_grid = panels(lines, columns, (2.45, 1.3), (0.15, 0.15, 0.82, 0.55), (0.2, 0.5))
    grid = axes_grid.ravel()
    for axes, cell in zip(grid, shown, strict=False):
        name = cell_label(cell.row, rows) + (" (raw)" if is_raw(cell.row.get("normalise")) else "")
        scores = np.asarray(cell.scores)
        clean, poison = scores[~is_poison], scores[is_poison]
        ends = np.concatenate([np.quantile(part, (0.002, 0.998)) for part in (clean, poison) if len(part)])
        low, high = float(ends.min()), float(ends.max())
        for part, colour in ((clean, CLEAN), (poison, POISON)):
            if len(part):
                bars = int(np.clip(2 * np.sqrt(len(part)), 12, 40))  # few samples, wide bars
                edges = np.linspace(low, high if high > low else low + 1, bars + 1)
                heights, _ = np.histogram(np.clip(part, edges[0], edges[-1]), edges)
                heights = heights / heights.max()
                axes.stairs(heights, edges, fill=True, color=colour, alpha=0.5)
                axes.stairs(heights, edges, color=colour, linewidth=1.3)
        mark = ", control" if is_control(cell.row) else ""
        axes.set_title(f"{name}{mark}", fontsize=9)
        axes.set_title(f"AUROC {number(cell.row.get('auroc'))}", fontsize=8, loc="right", color=GREY)
        axes.set(yticks=[], ylim=(0, 1.08))
        axes.tick_params(labelsize=7.5)
        axes.locator_params(axis="x", nbins=4)
        axes.spines["left"].set_visible(False)
        axes.grid(False)
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    handles = [Patch(color=CLEAN, alpha=0.7, label=f"clean ({int((~is_poison).sum()):,})")]
    handles.append(Patch(color=POISON, alpha=0.7, label=f"poisoned ({int(is_poison.sum()):,})"))
    place = (0.1 / figure.get_figwidth(), 1 - 0.29 / figure.get_figheight())
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=place, ncols=2, fontsize=8.5, borderaxespad=0)
    note = "across: score, higher = more suspicious; up: density, each scaled to its own maximum"
    headed(figure, heading(rows[0] if rows else {}, is_poison), note)
    return figure


def _both(is_poison: np.ndarray, *panels: Axes) -> bool:
    """Whether there are clean and poisoned samples; if not, say so in the panels."""
    if is_poison.any() and not is_poison.all():
        return True
    for axes in panels:
        axes.text(0.5, 0.5, "no poisoned samples to find", transform=axes.transAxes, ha="center", color=GREY)
    return False


def _finite(value: Any) -> float:
    return float(value) if value is not None and np.isfinite(value) else -1.0
