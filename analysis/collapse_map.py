"""Where scores collapse: AUROC by the number of poisons in a scope and by k."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.aggregate import case_order, is_control_case, usual
from analysis.panel_layout import (
    PANELS,
    case_panels,
    headline,
    panel_title,
)
from analysis.style import (
    FAINT,
    INK,
    POISON,
    detector_label,
    detector_order,
    headed,
    styled,
)
from analysis.tables import number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def collapse(rows: pd.DataFrame) -> Figure | None:
    """The collapse map: AUROC by the number of poisons in a scope and by k.

    Below the line k = poisons, poisons can be each other's k nearest neighbours.
    """
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
        shade = _map(axes, same)
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


def _map(axes: Axes, same: pd.DataFrame) -> Any:
    """Draw one attack and detector: a field per k and number of poisons, hatched where the cell is missing."""
    from matplotlib.patches import Rectangle

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
    return shade
