"""Figures over many cells: one axis of the usual setting at a time, seeds, controls, the collapse map, cost.

Each function takes a study's rows (`grid.studies`) and returns a figure, or None where its cells do not
exist. A cell of the figure's own grid that is missing or failed is marked with a cross at the foot, or
hatched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import style
from analysis.aggregate import along, case_order, is_control_case, studies, usual
from analysis.panel_layout import (
    PANELS,
    case_panels,
    detectors_of,
    headline,
    left_out,
    marked,
    mean_auroc,
    panel_title,
    shown_cases,
)
from analysis.style import (
    CONTROLS,
    FAINT,
    GREY,
    INK,
    POISON,
    TARGET,
    detector_colour,
    detector_label,
    detector_line,
    detector_order,
    headed,
    label_lines,
    line_note,
    styled,
)
from analysis.tables import EMBEDDED_AT, number

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
CATEGORICAL = {
    "normalise": "raw against normalised embeddings",
    "modality": "image against joint image-text neighbours",
    "convention": "published definitions against the paper's code",
    "model": "architectures",
}


def figures() -> dict[str, Callable[[pd.DataFrame], Figure | None]]:
    """Every figure by its file name."""
    named: dict[str, Callable[[pd.DataFrame], Figure | None]] = {}
    for axis in NUMERIC:
        named[f"by_{axis}"] = lambda rows, axis=axis: numeric(rows, axis)  # type: ignore[misc]
    for column in CATEGORICAL:
        named[f"by_{column}"] = lambda rows, column=column: categorical(rows, column)  # type: ignore[misc]
    return named | {"collapse": collapse, "seeds": seeds, "cost": cost}


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
        ends: list[tuple[float, str, dict[str, Any]]] = []
        for detector in detectors_of(of_case):
            same = of_case[of_case["detector"] == detector]
            groups = same[same["status"] == "ok"].groupby(axis)["auroc"]
            mean, spread = groups.mean(), groups.std(ddof=1).fillna(0)
            x = mean.index.to_numpy(float)
            line, band = mean.reindex(values), spread.reindex(values)  # a missing cell is a gap in the line
            look = detector_line(detector, detectors_of(rows))
            axes.plot(values, line, marker="o", markersize=4, **look)
            axes.fill_between(values, line - band, line + band, color=look["color"], alpha=0.15, linewidth=0)
            if len(mean):
                ends.append((float(mean.iloc[-1]), marked(detector), look))
            holes = np.setdiff1d(values, x)  # drawn in axes coordinates, so that they move no limit
            crosses |= bool(len(holes))
            place = 0.02 + 0.025 * detectors_of(of_case).index(detector)
            foot = axes.get_xaxis_transform()
            axes.plot(holes, [place] * len(holes), "x", color=look["color"], markersize=4, transform=foot)
        if axis == "k" and "poisons_per_scope" in of_case and of_case["poisons_per_scope"].notna().any():
            _mark_poisons(axes, float(of_case["poisons_per_scope"].median()), values)
        if values.max() / values.min() >= 4:
            axes.set_xscale("log", base=10 if axis == "rate" else 2)
        axes.minorticks_off()
        axes.set_xticks(values, labels=[_tick(value, axis) for value in values])
        axes.tick_params(axis="x", labelsize=7.5, rotation=0 if len(values) < 6 else 45)
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


def _tick(value: float, axis: str) -> str:
    return f"{100 * value:g} %" if axis == "rate" else f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def _mark_poisons(axes: Axes, count: float, values: np.ndarray) -> None:
    """Where k is the number of poisons in a scope: up to there poisons can be each other's neighbours."""
    if values.min() / 2 <= count <= values.max() * 2:
        axes.axvline(count, color=GREY, linestyle="-.", linewidth=1.2)
        foot = axes.get_xaxis_transform()
        look: dict[str, Any] = {"fontsize": 7, "color": GREY, "rotation": 90, "va": "bottom", "ha": "right"}
        axes.text(count, 0.03, f"{count:.3g} poisons in a scope", transform=foot, **look)


@styled
def categorical(rows: pd.DataFrame, column: str) -> Figure | None:
    """AUROC for each value of a category: a dot per value, a line between them, a panel per attack."""
    import pandas as pd

    if column == "normalise":
        chosen = usual(rows)
        values: list[Any] = [True, False]
    else:
        if column == "model":  # each with what is usual for itself: its training is configured otherwise
            chosen = pd.concat([usual(part) for _, part in studies(rows)])
        else:
            chosen = along(rows, column)
        chosen = chosen[headline(chosen)]
        values = list(chosen[column].dropna().drop_duplicates()) if column in chosen else []
    if (
        len(values) < 2
        or chosen[column].nunique(dropna=True) < 2
        or chosen.groupby("case")[column].nunique().max() < 2
    ):
        return None
    # An attack with one value only has nothing to show here.
    chosen = chosen[chosen.groupby("case")[column].transform("nunique") > 1]
    cases = shown_cases(chosen)
    detectors = detectors_of(chosen)
    above = 1.05 if column == "model" else 0.85  # titles may have two lines
    size, margins = (2.45, 0.2 * len(detectors) + 0.15), (1.55, 0.15, above, 0.8)
    figure, panels = case_panels(len(cases), size, margins, (0.2, above - 0.1), sharey=True)
    # Hollow shapes, so that equal values do not hide each other.
    looks = [("o", TARGET, 6.5), ("D", POISON, 4), ("s", "#009E73", 8.5), ("^", "#CC79A7", 5)]
    names = {True: "normalised", False: "raw"}
    crosses = False
    for axes, name in zip(panels, cases, strict=False):
        of_case = chosen[chosen["case"] == name]
        for place, detector in enumerate(detectors):
            same = of_case[(of_case["detector"] == detector)]
            either = mean_auroc(same[same[column].isna()])  # a detector for which the axis makes no difference
            if either is not None:
                axes.plot(either, place, ".", color=GREY, markersize=7)
                continue
            means = [mean_auroc(same[same[column].astype(object) == value]) for value in values]
            known = [mean for mean in means if mean is not None]
            if known:
                axes.plot([min(known), max(known)], [place, place], color=FAINT, linewidth=3, zorder=1)
            for mean, (marker, colour, width) in zip(means, looks, strict=False):
                if mean is None:
                    crosses |= column != "normalise" or detector not in CONTROLS
                    continue
                axes.plot(
                    mean,
                    place,
                    marker,
                    markeredgecolor=colour,
                    markerfacecolor="none",
                    markersize=width,
                    markeredgewidth=1.5,
                )
            if not known:
                axes.plot(0.02, place, "x", color=GREY, markersize=5, transform=axes.get_yaxis_transform())
        axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(detectors)), labels=[marked(name) for name in detectors])
        axes.set(title=panel_title(of_case, name), xlabel="AUROC")
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(len(detectors) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            marker=marker,
            markeredgecolor=colour,
            markerfacecolor="none",
            markeredgewidth=1.5,
            markersize=width,
            linestyle="",
            label=str(names.get(value, value)),
        )
        for value, (marker, colour, width) in zip(values, looks, strict=False)
    ]
    if chosen[column].isna().any():
        handles.append(
            Line2D([], [], marker=".", color=GREY, markersize=7, linestyle="", label="makes no difference")
        )
    top = (0.1 / figure.get_figwidth(), 1 - 0.29 / figure.get_figheight())
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=top, ncols=5, fontsize=8.5, borderaxespad=0)
    note = "mean over seeds; dotted: chance; ‡ control" + ("; x or no mark: missing cell" if crosses else "")
    headed(figure, f"AUROC: {CATEGORICAL[column]}", note + left_out(chosen))
    return figure


@styled
def collapse(rows: pd.DataFrame) -> Figure | None:
    """The collapse map: AUROC by the number of poisons in a scope and by k.

    Below the line k = poisons, poisons can be each other's k nearest neighbours.
    """
    from matplotlib.patches import Rectangle

    if "poisons_per_scope" not in rows:
        return None
    chosen = usual(rows, free=("k", "scope_size", "scope", "rate", "attack_variant"))
    chosen = chosen[chosen["poisons_per_scope"].notna() & (chosen["poisons_per_scope"] > 0) & headline(chosen)]
    chosen = chosen.assign(poisons=chosen["poisons_per_scope"].round().clip(lower=1))
    maps = []
    for (name, detector), same in chosen.groupby(["case", "detector"], sort=False):
        if same["k"].nunique() > 1 and same["poisons"].nunique() > 1 and not is_control_case(str(name)):
            maps.append((str(name), str(detector), same))
    if not maps:
        return None
    maps = sorted(maps, key=lambda item: (case_order(item[0]), detector_order(item[1])))[:PANELS]
    columns = max(same["poisons"].nunique() for _, _, same in maps)
    size = (max(1.6, 0.42 * columns), 2.3)
    figure, panels = case_panels(len(maps), size, (0.6, 0.95, 0.62, 0.75), (0.6, 0.8))
    shade = None
    for axes, (name, detector, same) in zip(panels, maps, strict=False):
        x, y = np.sort(same["poisons"].unique()), np.sort(same["k"].unique())
        mean = same[same["status"] == "ok"].pivot_table(index="k", columns="poisons", values="auroc")
        grid = mean.reindex(index=y, columns=x).to_numpy(float)
        shade = axes.imshow(grid, origin="lower", aspect="auto", cmap="cividis", vmin=0.4, vmax=1)
        for i, j in np.ndindex(*grid.shape):
            if np.isnan(grid[i, j]):
                hatch = Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="////", edgecolor=FAINT, linewidth=0)
                axes.add_patch(hatch)
            else:
                ink = "white" if grid[i, j] < 0.75 else INK
                axes.text(j, i, number(grid[i, j], 2), ha="center", va="center", fontsize=7.5, color=ink)
        # For each column the step between the last k that is no more than the poisons and the next.
        steps = np.searchsorted(y, x, side="right") - 0.5
        axes.stairs(steps, np.arange(len(x) + 1) - 0.5, baseline=None, color=POISON, linewidth=2.2)
        axes.set_xticks(range(len(x)), labels=[f"{value:g}" for value in x])
        axes.set_yticks(range(len(y)), labels=[f"{value:g}" for value in y])
        axes.tick_params(labelsize=7.5)
        axes.grid(False)
        axes.set(title=f"{panel_title(same, name)}, {detector_label(detector)}", xlabel="poisons in a scope")
        axes.set_ylabel("k", rotation=0, va="center")
    assert shade is not None
    width = figure.get_figwidth()
    side = figure.add_axes(
        (1 - 0.75 / width, panels[0].get_position().y0, 0.12 / width, panels[0].get_position().height)
    )
    bar = figure.colorbar(shade, cax=side, extend="min")
    bar.set_label("AUROC", fontsize=8)
    bar.ax.tick_params(labelsize=7.5)
    bar.outline.set_visible(False)
    note = "below the orange line poisons can be each other's k nearest neighbours; hatched: missing cell"
    headed(figure, "AUROC by k and by the number of poisons in a neighbourhood scope", note)
    return figure


@styled
def seeds(rows: pd.DataFrame) -> Figure | None:
    """Every seed's AUROC as a dot and their median as a line: how far one lucky number can lead."""
    chosen = usual(rows)
    chosen = chosen[headline(chosen)]
    counts = {name: chosen.loc[chosen["case"] == name, "seed"].nunique() for name in shown_cases(chosen)}
    cases = [name for name, count in counts.items() if count > 1]
    if not cases:
        return None
    detectors = detectors_of(chosen)
    size, margins = (2.45, 0.2 * len(detectors) + 0.15), (1.55, 0.85, 0.62, 0.8)
    figure, panels = case_panels(len(cases), size, margins, (0.75, 0.75), sharey=True)
    for axes, name in zip(panels, cases, strict=False):
        of_case = chosen[chosen["case"] == name]
        for place, detector in enumerate(detectors):
            same = of_case[of_case["detector"] == detector]
            done = same["auroc"].dropna().to_numpy()
            colour = detector_colour(detector, detectors)
            axes.plot(done, np.full(len(done), place), "o", color=colour, markersize=4.5, alpha=0.65)
            if len(done):
                axes.plot([np.median(done)] * 2, [place - 0.32, place + 0.32], color=colour, linewidth=2.2)
            if len(done) < counts[name]:
                text = f"{len(done)} of {counts[name]}"
                foot = axes.get_yaxis_transform()
                axes.text(1.01, place, text, transform=foot, fontsize=7.5, color=GREY, va="center")
        axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(detectors)), labels=[marked(name) for name in detectors])
        axes.set(title=f"{panel_title(of_case, name)}, {counts[name]} seeds", xlabel="AUROC", xlim=(-0.03, 1.03))
        axes.set_ylim(len(detectors) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
    note = "bar: their median; dotted: chance; ‡ control; at the right: how many seeds there are, if not all"
    headed(figure, "AUROC of each seed (dots)", note + left_out(chosen))
    return figure


@styled
def cost(rows: pd.DataFrame) -> Figure | None:
    """What a detector takes for the data set, in seconds and (where it was measured) memory, beside its mean AUROC;
    without what several of them share."""
    chosen = usual(rows)
    chosen = chosen[headline(chosen) & (chosen["status"] == "ok")]
    if chosen["detector"].nunique() < 2:
        return None
    detectors = detectors_of(chosen)
    note = "without the neighbour search and the views, which one run does once for all detectors"
    real = chosen[~chosen["case"].map(is_control_case) & ~(chosen["asr"] < EMBEDDED_AT)]
    costs = {"seconds": "seconds (median)"}
    if "memory_mb" in chosen and (chosen["memory_mb"] > 0).any():
        costs["memory_mb"] = "memory at its peak, MB (median)"
    size, margins = (2.9 if len(costs) == 1 else 2.3, 0.2 * len(detectors) + 0.15), (1.55, 0.15, 0.62, 0.82)
    figure, (panels,) = style.panels(1, len(costs) + 1, size, margins, (0.2, 0), sharey=True)
    for axes, (column, label) in zip(panels, costs.items(), strict=False):
        for place, detector in enumerate(detectors):
            value = float(chosen.loc[chosen["detector"] == detector, column].median())
            if not value > 0:  # not measured, or within what the process held anyway
                continue
            axes.plot([value], [place], "o", color=detector_colour(detector, detectors), markersize=7)
            text = f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
            axes.annotate(text, (value, place), (7, 0), textcoords="offset points", fontsize=7.5, va="center")
        axes.set(xscale="log", xlabel=label)
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.minorticks_off()
        axes.margins(x=0.25)
    samples = int(chosen["n"].max()) if chosen["n"].notna().any() else 0
    for place, detector in enumerate(detectors):
        done = real.loc[real["detector"] == detector, "auroc"].dropna().to_numpy()
        colour = detector_colour(detector, detectors)
        panels[-1].plot(done, np.full(len(done), place), "o", color=colour, markersize=3.5, alpha=0.5)
        if len(done):
            panels[-1].plot([np.mean(done)] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2.2)
    panels[-1].set(xlabel="AUROC", xlim=(-0.03, 1.03), title="dots: attacks, seeds; bar: mean")
    panels[-1].axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
    panels[0].set_yticks(range(len(detectors)), labels=[marked(name) for name in detectors])
    panels[0].set_ylim(len(detectors) - 0.5, -0.5)
    for axes in panels:
        axes.grid(axis="y", visible=False)
    if "memory_mb" in costs:
        note += "; no dot: nothing beyond what was held"
    title = f"What a detector costs for {samples:,} samples, and what it finds"
    headed(figure, title, f"{note}\nattacks that did not embed and controls are left out; ‡ control")
    return figure
