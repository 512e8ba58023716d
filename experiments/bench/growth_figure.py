"""A figure of time, or of memory, against the number of rows, both on logarithmic axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6bb1", "#999933")
MARKS = "osD^vPX*<"


@dataclass
class Panel:
    """lines: by the name of each, its points (n, value)."""

    title: str
    lines: dict[str, list[tuple[int, float]]] = field(default_factory=dict)


def draw_growth(
    file: Path, panels: Sequence[Panel], columns: int, title: str, unit: str, strong: str | None = None
) -> None:
    """Write a PNG of panels, `columns` in a row; dotted lines show growth with n and with n squared.

    strong: the line that is drawn thick.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    columns = max(1, min(columns, len(panels)))
    rows = -(-len(panels) // columns)
    width = 3.4 if columns > 1 else 5.2
    figure = Figure(figsize=(width * columns + 2.4, max(4.6, 2.9 * rows + 0.8)), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    for place, (panel, ax) in enumerate(zip(panels, axes, strict=False)):
        for name, points in panel.lines.items():
            number = names.index(name)
            ax.plot(
                *zip(*sorted(points), strict=True),
                color=COLOURS[number % len(COLOURS)],
                marker=MARKS[number % len(MARKS)],
                markersize=4,
                linestyle="-" if number < len(COLOURS) else "--",
                linewidth=2.5 if name == strong else 1.2,
                zorder=3 if name == strong else 2,
                label=name,
            )
        _guides(ax, [point for points in panel.lines.values() for point in points])
        _scales(ax, panel)
        if place % columns == 0:
            ax.set_ylabel(unit, fontsize=9)
        if place + columns >= len(panels):
            ax.set_xlabel("rows", fontsize=9)
            ax.tick_params(labelbottom=True)
    for ax in axes[len(panels) :]:
        ax.remove()
    drawn = [ax.get_legend_handles_labels() for ax in axes[: len(panels)]]
    handles = {label: handle for pair in drawn for handle, label in zip(*pair, strict=True)}
    figure.legend([handles[name] for name in names], names, loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(f"{title} (dotted: n and n²)", fontsize=10, x=0.01, ha="left")
    figure.savefig(file, dpi=130)


def _scales(ax: Axes, panel: Panel) -> None:
    """Logarithmic axes with a tick at each size, the title and a faint grid."""
    ax.set(xscale="log", yscale="log")
    sizes = sorted({n for points in panel.lines.values() for n, _ in points})
    ax.set_xticks(sizes, [f"{n:,}" for n in sizes], rotation=30)
    ax.minorticks_off()
    ax.set_title(panel.title, fontsize=9)
    ax.grid(alpha=0.25, linewidth=0.5)
    ax.tick_params(labelsize=8)


def _guides(ax: Axes, points: Sequence[tuple[int, float]]) -> None:
    """Lines of slope 1 and 2 through the lowest point at the smallest n."""
    first, last = min(n for n, _ in points), max(n for n, _ in points)
    if first == last:
        return
    low = min(value for n, value in points if n == first)
    for power in (1, 2):
        ends = [low, low * (last / first) ** power]
        ax.plot([first, last], ends, color="#bbbbbb", linewidth=0.8, linestyle=":", zorder=1)  # type: ignore[attr-defined]
