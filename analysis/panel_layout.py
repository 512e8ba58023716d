"""What figures with a panel for each attack share: which rows and attacks they show, titles, the layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis import style
from analysis.aggregate import case_label, case_order, is_control_case
from analysis.style import CONTROLS, detector_label, detector_order
from analysis.tables import SUCCEEDED_AT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 16  # largest number of attacks in one figure


def headline(rows: pd.DataFrame) -> pd.Series:
    """Which rows are on normalised embeddings, or of a detector that is only there raw."""
    normal = rows["normalise"].map(lambda value: value is None or value != value or bool(value)).astype(bool)
    names = set(rows.loc[normal, "detector"])
    return normal | ~rows["detector"].isin(names)


def shown_cases(rows: pd.DataFrame) -> list[str]:
    return sorted(rows["case"].drop_duplicates(), key=case_order)[:PANELS]


def detectors_of(rows: pd.DataFrame) -> list[str]:
    return sorted(rows["detector"].drop_duplicates(), key=detector_order)


def mean_auroc(rows: pd.DataFrame) -> float | None:
    done = rows.loc[rows["status"] == "ok", "auroc"].dropna()
    return float(done.mean()) if len(done) else None


def marked(detector: str) -> str:
    return detector_label(detector) + (" ‡" if detector in CONTROLS else "")


def panel_title(rows: pd.DataFrame, name: str) -> str:
    """An attack's name over its panel; a control says so, and so does an attack that did not succeed."""
    if is_control_case(name):
        return f"{case_label(name)} (control)"
    rates = rows.groupby("model", sort=False)["asr"].mean()
    failed = list(rates.index[rates < SUCCEEDED_AT])  # an unknown rate counts as success
    if failed and len(failed) < len(rates):
        return f"{case_label(name)}\n(did not succeed in {', '.join(failed)})"
    return case_label(name) + (" (did not succeed)" if failed else "")


def left_out(rows: pd.DataFrame) -> str:
    """Says which attacks have no panel, as there would be too many."""
    left = sorted(rows["case"].drop_duplicates(), key=case_order)[PANELS:]
    return f"\nno panel: {', '.join(case_label(name) for name in left)}" if left else ""


def case_panels(
    count: int,
    size: tuple[float, float],
    margins: tuple[float, float, float, float],
    gaps: tuple[float, float],
    **shared: Any,
) -> tuple[Figure, Sequence[Axes]]:
    """A figure with `count` panels, in as few lines of at most four as there must be, and evenly filled."""
    lines = -(-count // 4)
    columns = -(-count // lines)
    figure, grid = style.panels(lines, columns, size, margins, gaps, **shared)
    for axes in grid.ravel()[count:]:
        axes.set_visible(False)
    return figure, list(grid.ravel()[:count])
