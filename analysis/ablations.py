"""Figures over many cells, by file name: one axis of the usual setting at a time, seeds, controls, collapse, cost.

Each function takes the rows of a result group (`aggregate.result_groups`) and returns a figure, or None where its
cells do not exist. A cell of the figure's own grid that is missing or failed is marked with a cross at the foot, or
hatched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from analysis.by_category import CATEGORICAL, categorical
from analysis.by_number import NUMERIC, numeric
from analysis.collapse_map import collapse
from analysis.seeds_and_cost import cost, seeds

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def figures() -> dict[str, Callable[[pd.DataFrame], Figure | None]]:
    """Every figure by its file name."""
    named: dict[str, Callable[[pd.DataFrame], Figure | None]] = {}
    for axis in NUMERIC:
        named[f"by_{axis}"] = lambda rows, axis=axis: numeric(rows, axis)  # type: ignore[misc]
    for column in CATEGORICAL:
        named[f"by_{column}"] = lambda rows, column=column: categorical(rows, column)  # type: ignore[misc]
    return named | {"collapse": collapse, "seeds": seeds, "cost": cost}
