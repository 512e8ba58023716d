"""AUROC for each value of one category: raw or normalised, modality, convention, model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from analysis.aggregate import along, result_groups, usual
from analysis.panel_layout import (
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
    POISON,
    TARGET,
    headed,
    styled,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CATEGORICAL = {
    "normalise": "raw against normalised embeddings",
    "modality": "neighbours by image, by text, in one set of both, or by pair",
    "convention": "published definitions against the paper's code",
    "model": "architectures",
}


# Hollow shapes, so that equal values do not hide each other: marker, colour, size.
SHAPES = [("o", TARGET, 6.5), ("D", POISON, 4), ("s", "#009E73", 8.5), ("^", "#CC79A7", 5)]


@styled
def categorical(rows: pd.DataFrame, column: str) -> Figure | None:
    """AUROC for each value of a category: a shape per value, a line between them, a panel per attack."""
    chosen, values = _chosen(rows, column)
    if len(values) < 2 or chosen[column].nunique(dropna=True) < 2:
        return None
    # An attack with one value only has nothing to show here.
    chosen = chosen[chosen.groupby("case")[column].transform("nunique") > 1]
    if chosen.empty:
        return None
    cases, detectors = shown_cases(chosen), detectors_of(chosen)
    above = 1.05 if column == "model" else 0.85  # titles may have two lines
    size, margins = (2.45, 0.2 * len(detectors) + 0.15), (1.55, 0.15, above, 0.8)
    figure, panels = case_panels(len(cases), size, margins, (0.2, above - 0.1), sharey=True)
    crosses = False
    for axes, name in zip(panels, cases, strict=False):
        of_case = chosen[chosen["case"] == name]
        for place, detector in enumerate(detectors):
            same = of_case[of_case["detector"] == detector]
            crosses |= _line(axes, place, same, column, values) and (
                column != "normalise" or detector not in CONTROLS
            )
        axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(detectors)), labels=[marked(name) for name in detectors])
        axes.set(title=panel_title(of_case, name), xlabel="AUROC")
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(len(detectors) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
    _legend(figure, values, bool(chosen[column].isna().any()))
    note = "mean over seeds; dotted: chance; ‡ control" + ("; x or no mark: missing cell" if crosses else "")
    headed(figure, f"AUROC: {CATEGORICAL[column]}", note + left_out(chosen))
    return figure


def _chosen(rows: pd.DataFrame, column: str) -> tuple[pd.DataFrame, list[Any]]:
    """The rows to compare, and the values of `column` in the order in which they are drawn."""
    import pandas as pd

    if column == "normalise":
        return usual(rows), [True, False]
    if column == "model":  # each with what is usual for itself: its training is configured otherwise
        chosen = pd.concat([usual(part) for _, part in result_groups(rows)])
    else:
        chosen = along(rows, column)
    chosen = chosen[headline(chosen)]
    return chosen, list(chosen[column].dropna().drop_duplicates()) if column in chosen else []


def _line(axes: Axes, place: int, rows: pd.DataFrame, column: str, values: list[Any]) -> bool:
    """Draw one detector of one attack; whether a value has no cell."""
    either = mean_auroc(rows[rows[column].isna()])  # a detector for which the axis makes no difference
    if either is not None:
        axes.plot(either, place, ".", color=GREY, markersize=7)
        return False
    means = [mean_auroc(rows[rows[column].astype(object) == value]) for value in values]
    known = [mean for mean in means if mean is not None]
    if known:
        axes.plot([min(known), max(known)], [place, place], color=FAINT, linewidth=3, zorder=1)
    for mean, shape in zip(means, SHAPES, strict=False):
        if mean is not None:
            axes.plot(mean, place, **_hollow(*shape))
    if not known:
        axes.plot(0.02, place, "x", color=GREY, markersize=5, transform=axes.get_yaxis_transform())
    return any(mean is None for mean, _ in zip(means, SHAPES, strict=False))


def _hollow(marker: str, colour: str, size: float) -> dict[str, Any]:
    return {
        "marker": marker,
        "markeredgecolor": colour,
        "markerfacecolor": "none",
        "markersize": size,
        "markeredgewidth": 1.5,
        "linestyle": "",
    }


def _legend(figure: Figure, values: list[Any], either: bool) -> None:
    """Which shape is which value; either: whether some detector's values do not depend on the category."""
    from matplotlib.lines import Line2D

    names = {True: "normalised", False: "raw"}
    handles = [
        Line2D([], [], label=str(names.get(value, value)), **_hollow(*shape))
        for value, shape in zip(values, SHAPES, strict=False)
    ]
    if either:
        handles.append(
            Line2D([], [], marker=".", color=GREY, markersize=7, linestyle="", label="makes no difference")
        )
    top = (0.1 / figure.get_figwidth(), 1 - 0.29 / figure.get_figheight())
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=top, ncols=5, fontsize=8.5, borderaxespad=0)
