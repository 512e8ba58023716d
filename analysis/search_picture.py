"""Draws docs/images/search.png, the picture of docs/search.md: `python -m analysis.search_picture [file]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import style

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OWN, OTHER = style.TARGET, style.POISON  # colours of the two cells
# Centres a and b of two cells, some of their rows (the first is x or y), and the distance to x's k-th row.
A, B, KTH = (0.0, 0.0), (5.0, 1.5), 1.75
ROWS_A = [(0.75, -0.85), (-0.6, 0.5), (0.1, 0.75), (-0.7, -0.6), (0.5, 0.3)]
ROWS_B = [(4.35, 0.95), (5.7, 1.1), (4.8, 2.3), (5.4, 2.1), (5.1, 0.6)]


def planes() -> tuple[Any, Any]:
    """h of the rows of either cell to the plane between the two, (rows,) each: equation (8)."""
    import torch

    from detect.search.partition import Partition

    centres = torch.tensor([A, B])
    separation = torch.cdist(centres, centres).fill_diagonal_(torch.inf)
    partition = Partition(centres, centres.square().sum(dim=1), separation)
    to_b, to_a = (partition.planes(torch.tensor(rows), 0.0)[1] for rows in (ROWS_A, ROWS_B))
    return to_b[:, 1].numpy(), to_a[:, 0].numpy()


def candidates(k: int = 4, n: int = 12) -> tuple[Any, Any, float, float]:
    """n rows around a query, in bfloat16: sqrt(A) (n,), ascending, distances (n,), kth_distance and sqrt(bound)."""
    import torch

    from detect.search.bounds import Candidates, PreparedRows, norms

    generator = torch.Generator().manual_seed(1)
    query = torch.full((1, 16), 3.0) + torch.rand(1, 16, generator=generator)
    steps = torch.randn(n, 16, generator=generator)
    rows = query + steps / norms(steps)[:, None] * torch.linspace(0.7, 1.0, n)[:, None]
    search = PreparedRows(rows, k, 1, lambda done: None)
    search.centre = torch.zeros(16)
    rounded, asked = rows.bfloat16().float(), query.bfloat16().float()
    squares = (rounded - asked).square().sum(dim=1)
    moved = norms(rounded - rows) / norms(rows)
    order = squares.argsort()
    distances = norms(rows - query)[order]
    found = Candidates(order[None], squares[order][None], 2.0**-8, norms(asked - query), float(moved.max()))
    kth_distance = distances[:k].max()
    bound = search.bound(norms(query), kth_distance[None], found)
    return squares[order].sqrt().numpy(), distances.numpy(), float(kth_distance), float(bound.sqrt())


@style.styled
def draw() -> Figure:
    """The plane between two cells, and the bound on candidates."""
    figure, ((left, right),) = style.panels(1, 2, (4.2, 3.0), (0.15, 0.2, 0.35, 0.6), (0.45, 0))
    _draw_planes(left)
    _draw_candidates(right)
    return figure


def _draw_planes(axes: Axes) -> None:
    import numpy as np
    from matplotlib.patches import Circle

    to_b, to_a = planes()
    a, b, x = np.array(A), np.array(B), np.array(ROWS_A[0])
    y = np.array(ROWS_B[int(to_a.argmin())])
    across = (b - a) / np.linalg.norm(b - a)
    along = np.array([-across[1], across[0]])
    middle = (a + b) / 2
    for distance, look in ((0.0, "-"), (float(to_a.min()), (0, (4, 3)))):
        ends = np.array([middle + distance * across + t * along for t in (-2.2, 2.35)])
        axes.plot(*ends.T, color=style.INK if not distance else OTHER, linestyle=look, linewidth=1.2)
    for rows, centre, colour in ((ROWS_A, a, OWN), (ROWS_B, b, OTHER)):
        axes.plot(*np.array(rows).T, "o", color=colour, markersize=4)
        axes.plot(*centre, "+", color=colour, markersize=10, markeredgewidth=1.8)
    axes.add_patch(Circle((x[0], x[1]), KTH, fill=False, color=OWN, linewidth=1))
    _label(axes, "kth_distance", x + KTH * along, (0, 8), OWN)
    for row, h, sign, name, colour in (
        (x, float(to_b[0]), 1, "h(x, b)", OWN),
        (y, float(to_a.min()), -1, "least[a, b]", OTHER),
    ):
        foot = row + sign * h * across
        arrow = {"arrowstyle": "<->", "color": colour, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (foot[0], foot[1]), (row[0], row[1]), arrowprops=arrow)
        _label(axes, name, (row + foot) / 2, (0, -11), colour)
    for name, where in (("a", a), ("b", b), ("x", x), ("y", y)):
        _label(axes, name, where, (-8, 6), style.INK)
    _label(axes, "plane between\na and b", middle - 2 * along, (42, -14), style.INK)
    axes.set(xlim=(-2.2, 6.6), ylim=(-2.9, 2.9), aspect="equal", xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title("Cells: h(x, b) + least[a, b] > kth_distance, so b is skipped")


def _label(axes: Axes, text: str, where: np.ndarray, offset: tuple[int, int], colour: str) -> None:
    """Text beside a point, `offset` points away."""
    axes.annotate(
        text, (where[0], where[1]), offset, textcoords="offset points", ha="center", fontsize=8, color=colour
    )


def _draw_candidates(axes: Axes, k: int = 4) -> None:
    import numpy as np

    approximate, distances, kth_distance, bound = candidates(k)
    place = np.arange(1, len(approximate) + 1)
    measured = approximate <= bound
    axes.axvline(kth_distance, color=OWN, linewidth=1.2)
    axes.axvline(bound, color=OTHER, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.plot(approximate, place, "o", color=style.GREY, markerfacecolor="none", label="sqrt(A)")
    axes.plot(distances[measured], place[measured], "o", color=style.INK, markersize=4, label="distance, measured")
    axes.set(xlabel="distance to the query", ylabel="candidate", yticks=place[::2])
    axes.set_ylim(len(place) + 0.8, 0.2)
    axes.text(kth_distance, 12.6, "kth_distance ", color=OWN, fontsize=8, ha="right")
    axes.text(bound, 12.6, " sqrt(bound)", color=OTHER, fontsize=8)
    axes.legend(loc="upper right", fontsize=8)
    axes.set_title(f"Candidates: k = {k}; only those up to the bound are measured")


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/search.png")
    style.save(draw(), path.parent, path.stem)
