"""Figures over many cells: one axis of the usual setting at a time, seeds, controls, the collapse map, cost.

Each function takes a study's rows (`grid.studies`) and returns a figure, or None where its cells do not
exist. A cell of the figure's own grid that is missing or failed is marked with a cross at the foot, or
hatched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.grid import along, case_label, case_order, is_control_case, usual
from analysis.style import (
    CONTROLS,
    FAINT,
    GREY,
    INK,
    POISON,
    TARGET,
    detector_colour,
    detector_label,
    detector_order,
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
PANELS = 8  # at most so many attacks in one figure


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
    chosen = chosen[chosen[axis].notna() & _headline(chosen)] if len(chosen) else chosen
    if len(chosen):  # a detector with one value only has nothing to show here
        chosen = chosen[chosen.groupby(["case", "detector"])[axis].transform("nunique") > 1]
    cases = _cases(chosen)
    if not cases:
        return None
    figure, panels = _panels(len(cases), width=3.5, height=2.9)
    crosses = False
    for axes, name in zip(panels, cases, strict=False):
        of_case = chosen[chosen["case"] == name]
        values = np.sort(of_case[axis].unique()).astype(float)
        for detector in _detectors(of_case):
            same = of_case[of_case["detector"] == detector]
            groups = same[same["status"] == "ok"].groupby(axis)["auroc"]
            mean, spread = groups.mean(), groups.std(ddof=1).fillna(0)
            x = mean.index.to_numpy(float)
            look = _look(detector, rows)
            axes.plot(x, mean, marker="o", markersize=4, label=detector_label(detector), **look)
            axes.fill_between(x, mean - spread, mean + spread, color=look["color"], alpha=0.15, linewidth=0)
            holes = np.setdiff1d(values, x)  # drawn in axes coordinates, so that they move no limit
            crosses |= bool(len(holes))
            place = 0.02 + 0.025 * _detectors(of_case).index(detector)
            foot = axes.get_xaxis_transform()
            axes.plot(holes, [place] * len(holes), "x", color=look["color"], markersize=4, transform=foot)
        if axis == "k" and "poisons_per_scope" in of_case and of_case["poisons_per_scope"].notna().any():
            count = float(of_case["poisons_per_scope"].median())
            if values.min() / 2 <= count <= values.max() * 2:
                axes.axvline(count, color=GREY, linestyle=":", linewidth=1.2)
                style: dict[str, Any] = {
                    "fontsize": 7,
                    "color": GREY,
                    "rotation": 90,
                    "va": "bottom",
                    "ha": "right",
                }
                axes.text(count, 0.03, "poisons in a scope", transform=axes.get_xaxis_transform(), **style)
        if values.max() / values.min() >= 4:
            axes.set_xscale("log", base=10 if axis == "rate" else 2)
        axes.minorticks_off()
        axes.set_xticks(values, labels=[f"{100 * v:g} %" if axis == "rate" else f"{v:g}" for v in values])
        axes.tick_params(axis="x", labelsize=7.5, rotation=0 if len(values) < 7 else 45)
        _auroc_axis(axes)
        axes.set(title=_title(of_case, name), xlabel=NUMERIC[axis])
    note = "band: standard deviation over seeds" + ("; crosses at the foot: missing cells" if crosses else "")
    _legend(figure, panels, note)
    return figure


@styled
def categorical(rows: pd.DataFrame, column: str) -> Figure | None:
    """AUROC for each value of a category: a dot per value, a line between them, a panel per attack."""
    if column == "normalise":
        chosen = usual(rows)
        values: list[Any] = [True, False]
    else:
        chosen = along(rows, column) if column != "model" else usual(rows)
        chosen = chosen[_headline(chosen)]
        values = list(chosen[column].dropna().drop_duplicates()) if column in chosen else []
    if len(values) < 2 or chosen[column].nunique(dropna=True) < 2:
        return None
    cases = _cases(chosen)
    detectors = _detectors(chosen)
    figure, panels = _panels(len(cases), width=3.1, height=0.6 + 0.24 * len(detectors), share=True)
    looks = [("o", TARGET), ("D", POISON), ("s", "#009E73"), ("^", "#E69F00")]
    names = {True: "normalised", False: "raw"}
    crosses = False
    for axes, name in zip(panels, cases, strict=False):
        of_case = chosen[chosen["case"] == name]
        for place, detector in enumerate(detectors):
            same = of_case[(of_case["detector"] == detector)]
            either = same[same[column].isna()]  # a detector for which the axis makes no difference
            means = [
                _mean(either if len(either) else same[same[column].astype(object) == value]) for value in values
            ]
            known = [mean for mean in means if mean is not None]
            if known:
                axes.plot([min(known), max(known)], [place, place], color=FAINT, linewidth=3, zorder=1)
            for mean, (marker, colour) in zip(means, looks, strict=False):
                if mean is None:
                    crosses |= column != "normalise" or detector not in CONTROLS
                    continue
                axes.plot(mean, place, marker, color=colour, markersize=5.5, zorder=2, alpha=0.9)
            if not known:
                axes.plot(0.02, place, "x", color=GREY, markersize=5, transform=axes.get_yaxis_transform())
        axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(detectors)), labels=[_marked(name) for name in detectors])
        axes.set(title=_title(of_case, name), xlabel="AUROC")
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(len(detectors) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker=marker, color=colour, linestyle="", label=str(names.get(value, value)))
        for value, (marker, colour) in zip(values, looks, strict=False)
    ]
    note = "mean over seeds; dotted: chance" + ("; cross or no dot: missing cell" if crosses else "")
    _legend(figure, panels, note, handles)
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
    chosen = chosen[chosen["poisons_per_scope"].notna() & (chosen["poisons_per_scope"] > 0) & _headline(chosen)]
    chosen = chosen.assign(poisons=chosen["poisons_per_scope"].round().clip(lower=1))
    maps = []
    for (name, detector), same in chosen.groupby(["case", "detector"], sort=False):
        if same["k"].nunique() > 1 and same["poisons"].nunique() > 1 and not is_control_case(str(name)):
            maps.append((str(name), str(detector), same))
    if not maps:
        return None
    maps = sorted(maps, key=lambda item: (case_order(item[0]), detector_order(item[1])))[:PANELS]
    columns = max(same["poisons"].nunique() for _, _, same in maps)
    figure, panels = _panels(len(maps), width=1.1 + 0.52 * columns, height=3.0)
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
        axes.set(title=f"{_title(same, name)}, {detector_label(detector)}", xlabel="poisons in a scope", ylabel="k")
    assert shade is not None
    bar = figure.colorbar(shade, ax=list(panels), shrink=0.8, pad=0.01, label="AUROC", extend="min")
    bar.outline.set_visible(False)
    note = "below the orange line poisons can be each other's k nearest neighbours; hatched: missing cell"
    figure.supxlabel(note, fontsize=8, color=GREY)
    return figure


@styled
def seeds(rows: pd.DataFrame) -> Figure | None:
    """Every seed's AUROC as a dot and their median as a line: how far one lucky number can lead."""
    chosen = usual(rows)
    chosen = chosen[_headline(chosen)]
    counts = {name: chosen.loc[chosen["case"] == name, "seed"].nunique() for name in _cases(chosen)}
    cases = [name for name, count in counts.items() if count > 1]
    if not cases:
        return None
    detectors = _detectors(chosen)
    figure, panels = _panels(len(cases), width=3.1, height=0.6 + 0.24 * len(detectors), share=True)
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
                text = f"{counts[name] - len(done)} missing"
                foot = axes.get_yaxis_transform()
                axes.text(0.02, place, text, transform=foot, fontsize=6.5, color=GREY, va="center")
        axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(detectors)), labels=[_marked(name) for name in detectors])
        axes.set(title=f"{_title(of_case, name)}, {counts[name]} seeds", xlabel="AUROC", xlim=(-0.03, 1.03))
        axes.set_ylim(len(detectors) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
    figure.supxlabel("dots: seeds; bars: their median; dotted: chance", fontsize=8, color=GREY)
    return figure


@styled
def cost(rows: pd.DataFrame) -> Figure | None:
    """Seconds that a detector takes for the data set (and memory, where it was measured), beside its mean
    AUROC.
    """
    from matplotlib.figure import Figure

    chosen = usual(rows)
    chosen = chosen[_headline(chosen) & (chosen["status"] == "ok")]
    if chosen["detector"].nunique() < 2:
        return None
    detectors = _detectors(chosen)
    note = "the first local detector of a run bears the neighbour search that all of them share"
    if "search_seconds" in chosen:
        chosen = chosen.assign(seconds=chosen["seconds"] + chosen["search_seconds"].fillna(0))
        note = "each local detector with the whole of the neighbour search, which one run makes only once"
    measured = [("seconds", "seconds (median)")]
    if "peak_mb" in chosen and chosen["peak_mb"].notna().any():
        measured.append(("peak_mb", "peak memory, MB (median)"))
    real = chosen[~chosen["case"].map(is_control_case)]
    figure = Figure(figsize=(3.6 * (len(measured) + 1), 1.1 + 0.28 * len(detectors)), layout="constrained")
    panels = figure.subplots(1, len(measured) + 1, sharey=True, squeeze=False)[0]
    for axes, (column, label) in zip(panels, measured, strict=False):
        for place, detector in enumerate(detectors):
            value = float(chosen.loc[chosen["detector"] == detector, column].median())
            colour = detector_colour(detector, detectors)
            axes.plot([value], [place], "o", color=colour, markersize=7)
            axes.annotate(
                f"{value:.3g}", (value, place), (7, 0), textcoords="offset points", fontsize=7.5, va="center"
            )
        axes.set(xscale="log", xlabel=label)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.margins(x=0.25)
    samples = int(chosen["n"].max()) if chosen["n"].notna().any() else 0
    panels[0].set_title(f"cost of a detector for {samples:,} samples")
    for place, detector in enumerate(detectors):
        done = real.loc[real["detector"] == detector, "auroc"].dropna().to_numpy()
        colour = detector_colour(detector, detectors)
        panels[-1].plot(done, np.full(len(done), place), "o", color=colour, markersize=3.5, alpha=0.5)
        if len(done):
            panels[-1].plot([np.mean(done)] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=2.2)
    panels[-1].set(xlabel="AUROC", xlim=(-0.03, 1.03), title="what it finds (dots: attacks, bar: mean)")
    panels[0].set_yticks(range(len(detectors)), labels=[_marked(name) for name in detectors])
    panels[0].set_ylim(len(detectors) - 0.5, -0.5)
    for axes in panels:
        axes.grid(axis="y", visible=False)
    figure.supxlabel(note, fontsize=8, color=GREY)
    return figure


# --- shared ---------------------------------------------------------------------------------------------------


def _headline(rows: pd.DataFrame) -> pd.Series:
    """Which rows are on normalised embeddings, or of a detector that is only there raw."""
    normal = rows["normalise"].map(lambda value: value is None or value != value or bool(value)).astype(bool)
    names = set(rows.loc[normal, "detector"])
    return normal | ~rows["detector"].isin(names)


def _cases(rows: pd.DataFrame) -> list[str]:
    return sorted(rows["case"].drop_duplicates(), key=case_order)[:PANELS]


def _detectors(rows: pd.DataFrame) -> list[str]:
    return sorted(rows["detector"].drop_duplicates(), key=detector_order)


def _mean(rows: pd.DataFrame) -> float | None:
    done = rows.loc[rows["status"] == "ok", "auroc"].dropna()
    return float(done.mean()) if len(done) else None


def _marked(detector: str) -> str:
    return detector_label(detector) + (" ‡" if detector in CONTROLS else "")


def _title(rows: pd.DataFrame, name: str) -> str:
    """An attack's name over its panel; a control says so, and so does an attack that did not embed."""
    if is_control_case(name):
        return f"{case_label(name)} (control)"
    embedded = not (rows["asr"].mean() < EMBEDDED_AT)  # an unknown rate counts as embedded
    return case_label(name) + ("" if embedded else " (did not embed)")


def _look(detector: str, rows: pd.DataFrame) -> dict[str, Any]:
    dashes = (0, (4, 2)) if detector in CONTROLS else "-"
    return {"color": detector_colour(detector, _detectors(rows)), "linestyle": dashes}


def _panels(count: int, width: float, height: float, share: bool = False) -> tuple[Figure, Sequence[Axes]]:
    """A figure with `count` panels, four to a line; `share` keeps the labels of the y axis to the left
    column.
    """
    from matplotlib.figure import Figure

    columns = min(4, count)
    lines = -(-count // columns)
    extra = 1.1 if share else 0.3
    figure = Figure(figsize=(width * columns + extra, height * lines + 0.7), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=share).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, list(grid[:count])


def _auroc_axis(axes: Axes) -> None:
    axes.set_ylim(min(0.42, axes.dataLim.y0 - 0.06), 1.02)
    axes.set_ylabel("AUROC")
    axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")


def _legend(figure: Figure, panels: Sequence[Axes], note: str, handles: Sequence[Any] = ()) -> None:
    if not handles:
        found = {label: h for axes in panels for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        handles = list(found.values())
    figure.legend(handles=list(handles), loc="outside upper left", ncols=min(len(handles), 7), fontsize=8.5)
    figure.supxlabel(note, fontsize=8, color=GREY)
