"""The most suspicious samples as a sheet of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import shorten, wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.style import GOOD, GREY, INK, POISON, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def suspects(
    images: np.ndarray,
    captions: Sequence[str],
    scores: Sequence[float],
    is_poison: Sequence[bool],
    detector: str,
    ids: Sequence[int] | None = None,
) -> Figure:
    """The most suspicious samples, best first: images (m, s, s, 3) uint8 with caption, rank, score and the
    truth.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    count = len(images)
    columns = min(6, max(count, 1))
    lines = -(-max(count, 1) // columns)
    texts = [
        "\n".join(wrap(shorten(str(text), 78, placeholder=" …"), 27)[:3]) or "(no caption)" for text in captions
    ]
    foot = 0.26 + 0.12 * max((text.count("\n") for text in texts), default=0)
    side, gap, head = 1.5, 0.18, 0.24  # inches, as is foot
    width, height = columns * (side + gap) + gap, lines * (side + head + foot) + 0.55
    figure = Figure(figsize=(width, height))
    found = int(np.sum(np.asarray(is_poison, bool)))
    title = f"The {count} most suspicious samples by {detector}: {found} of them poisoned"
    figure.text(gap / width, 1 - 0.22 / height, title, fontsize=10.5, va="center")
    handles = [
        Patch(facecolor="none", edgecolor=POISON, linewidth=2.5, label="poisoned"),
        Patch(facecolor="none", edgecolor=GOOD, linewidth=2.5, linestyle=(0, (3, 1.2)), label="clean"),
    ]
    figure.legend(handles=handles, loc="upper right", ncols=2, fontsize=8.5, handlelength=1.6)
    for place in range(count):
        line, column = divmod(place, columns)
        x = gap + column * (side + gap)
        y = height - 0.45 - line * (side + head + foot) - head - side
        axes: Axes = figure.add_axes((x / width, y / height, side / width, side / height))
        name = f"#{place + 1}" + (f"  id {ids[place]}" if ids is not None else "")
        _picture(axes, images[place], bool(is_poison[place]))
        axes.text(0, 1.04, name, transform=axes.transAxes, fontsize=7.5, color=INK)
        axes.text(1, 1.04, f"{scores[place]:.4g}", transform=axes.transAxes, fontsize=7.5, color=GREY, ha="right")
        text = texts[place].replace("$", r"\$")  # a caption is no formula
        axes.text(0, -0.05, text, transform=axes.transAxes, fontsize=7, va="top", color=INK, linespacing=1.15)
    return figure


def _picture(axes: Axes, image: np.ndarray, poisoned: bool) -> None:
    """The image (s, s, 3) uint8 in a frame that says what it is."""
    from matplotlib.patches import Rectangle

    axes.imshow(image, interpolation="nearest" if image.shape[0] <= 96 else "antialiased", aspect="equal")
    axes.set(xticks=[], yticks=[])
    axes.set_frame_on(False)
    look: dict[str, Any] = {
        "edgecolor": POISON if poisoned else GOOD,
        "linestyle": "-" if poisoned else (0, (3, 1.2)),
    }
    axes.add_patch(
        Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, clip_on=False, linewidth=2.8, **look)
    )
