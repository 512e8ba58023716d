"""Every seed's AUROC, and what a detector costs beside what it finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis import style
from analysis.aggregate import is_control_case, usual
from analysis.panel_layout import (
    case_panels,
    detectors_of,
    headline,
    left_out,
    marked,
    panel_title,
    shown_cases,
)
from analysis.style import (
    GREY,
    detector_colour,
    headed,
    styled,
)
from analysis.tables import SUCCEEDED_AT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


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
    real = chosen[~chosen["case"].map(is_control_case) & ~(chosen["asr"] < SUCCEEDED_AT)]
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
    headed(figure, title, f"{note}\nattacks that did not succeed and controls are left out; ‡ control")
    return figure
