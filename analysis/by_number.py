"""AUROC along one numeric axis of the usual setting: the rate, k, the scope, the epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.aggregate import usual
from analysis.panel_layout import (
    case_panels,
    detectors_of,
    headline,
    marked,
    panel_title,
    shown_cases,
)
from analysis.style import (
    GREY,
    detector_line,
    headed,
    label_lines,
    line_note,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMERIC = {
    "rate": "share of poisoned samples",
    "k": "neighbourhood size k",
    "scope_size": "samples in a neighbourhood scope",
    "epochs": "training epochs",
}


@styled
def numeric(rows: pd.DataFrame, axis: str) -> Figure | None:
    """AUROC along a numeric axis: mean and standard deviation over seeds, a panel per attack, a line per
    detector.
    """
    free = ("scope_size", "scope") if axis == "scope_size" else (axis,)
    chosen = usual(rows, free) if all(name in rows for name in free) else rows.iloc[:0]
    chosen = chosen[chosen[axis].notna() & headline(chosen)] if len(chosen) else chosen
    if len(chosen):  # a detector with one value only has nothing to show here
        chosen = chosen[chosen.groupby(["case", "detector"])[axis].transform("nunique") > 1]
    cases = shown_cases(chosen)
    if not cases:
        return None
    width, bottom = (4.4, 1.2) if len(cases) == 1 else (2.7, 0.95)  # room for the note below
    figure, panels = case_panels(len(cases), (width, 2.5), (0.6, 1.5, 0.62, bottom), (1.55, 0.75), sharey=True)
    crosses = False
    labels: list[list[tuple[float, str, dict[str, Any]]]] = []
    for axes, name in zip(panels, cases, strict=False):
        of_case = chosen[chosen["case"] == name]
        values = np.sort(of_case[axis].unique()).astype(float)
        ends, holes = _lines(axes, of_case, axis, values, detectors_of(rows))
        crosses |= holes
        if axis == "k" and "poisons_per_scope" in of_case and of_case["poisons_per_scope"].notna().any():
            _mark_poisons(axes, float(of_case["poisons_per_scope"].median()), values)
        _ticks(axes, values, axis)
        axes.set(title=panel_title(of_case, name), xlabel=NUMERIC[axis])
        axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        labels.append(ends)
    low = min(0.42, *(axes.dataLim.y0 - 0.04 for axes in panels))
    for axes, ends in zip(panels, labels, strict=True):
        axes.set_ylim(low, 1.02)
        label_lines(axes, ends)
    panels[0].set_ylabel("AUROC")
    note = f"mean over seeds; band: their standard deviation; thin dotted: chance{'; x: missing cell' * crosses}"
    headed(figure, f"AUROC by {NUMERIC[axis]}", f"{note}\n{line_note(detectors_of(chosen))}")
    return figure


def _lines(
    axes: Axes, of_case: pd.DataFrame, axis: str, values: np.ndarray, every: list[str]
) -> tuple[list[tuple[float, str, dict[str, Any]]], bool]:
    """Draw a line and a band per detector, a cross at the foot where its cell is missing.

    values: of the axis, in order.  every: the detectors that share out the colours.
    Returns what `style.label_lines` needs, and whether there are crosses.
    """
    ends: list[tuple[float, str, dict[str, Any]]] = []
    crosses = False
    for number, detector in enumerate(detectors_of(of_case)):
        same = of_case[of_case["detector"] == detector]
        groups = same[same["status"] == "ok"].groupby(axis)["auroc"]
        mean, spread = groups.mean(), groups.std(ddof=1).fillna(0)
        line, band = mean.reindex(values), spread.reindex(values)  # a missing cell is a gap in the line
        look = detector_line(detector, every)
        axes.plot(values, line, marker="o", markersize=4, **look)
        axes.fill_between(values, line - band, line + band, color=look["color"], alpha=0.15, linewidth=0)
        if len(mean):
            ends.append((float(mean.iloc[-1]), marked(detector), look))
        holes = np.setdiff1d(values, mean.index.to_numpy(float))
        crosses |= bool(len(holes))
        foot = axes.get_xaxis_transform()  # in axes coordinates, so that crosses move no limit
        height = [0.02 + 0.025 * number] * len(holes)
        axes.plot(holes, height, "x", color=look["color"], markersize=4, transform=foot)
    return ends, crosses


def _ticks(axes: Axes, values: np.ndarray, axis: str) -> None:
    """A tick at each value; a logarithmic axis where they span a factor of 4."""
    if values.max() / values.min() >= 4:
        axes.set_xscale("log", base=10 if axis == "rate" else 2)
    axes.minorticks_off()
    axes.set_xticks(values, labels=[_tick(value, axis) for value in values])
    axes.tick_params(axis="x", labelsize=7.5, rotation=0 if len(values) < 6 else 45)


def _tick(value: float, axis: str) -> str:
    return f"{100 * value:g} %" if axis == "rate" else f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def _mark_poisons(axes: Axes, count: float, values: np.ndarray) -> None:
    """A line where k equals the number of poisons in a scope: below it poisons can be each other's neighbours."""
    if values.min() / 2 <= count <= values.max() * 2:
        axes.axvline(count, color=GREY, linestyle="-.", linewidth=1.2)
        foot = axes.get_xaxis_transform()
        look: dict[str, Any] = {"fontsize": 7, "color": GREY, "rotation": 90, "va": "bottom", "ha": "right"}
        axes.text(count, 0.03, f"{count:.3g} poisons in a scope", transform=foot, **look)
