"""The one house style of every figure and table: names, colours, line styles, and how a figure is saved.

Colours are Okabe and Ito's colour-blind-safe set (2008), widened by three of Paul Tol's. A detector keeps its
colour in every figure. Figures are made with matplotlib's objects (`Figure`), never with pyplot, so that
drawing leaves no global state behind and works in any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
Drawn = TypeVar("Drawn")  # a figure, or None where there is nothing to draw

INK, GREY, FAINT = "#222222", "#6E7781", "#D5DAE0"
CLEAN, POISON, TARGET = "#8396AB", "#D55E00", "#0072B2"  # samples, everywhere
GOOD = "#009E73"

CONTROLS = {"norm": "embedding norm alone"}
CONTROL_ATTACKS = {"mislabel": "target caption without a trigger", "none": "no poisoning"}
LEADERS = (
    "drift_pursuit",
    "pursuit",
    "tandem",
    "multiscale",
    "slof",
    "dao",
    "lof",
)  # whose view of the data is shown, the best of them first

_DETECTORS = {  # name: (label, colour)
    "tandem": ("Tandem", "#AA4499"),
    "slof": ("SLOF", "#0072B2"),
    "slof_text": ("SLOF, texts", "#88CCEE"),
    "slof_pair": ("SLOF, pairs", "#1B3A6B"),
    "dao": ("DAO", "#D55E00"),
    "lof": ("LOF", "#009E73"),
    "kdist": ("k-dist", "#56B4E9"),
    "flicker": ("Flicker", "#44AA99"),
    "drift": ("Drift", "#B24C63"),
    "drift_pursuit": ("DriftPursuit", "#5D3A1A"),
    "multiscale": ("Multiscale", "#2E5E8C"),
    "pursuit": ("Pursuit", "#8B5E00"),
    "lid": ("LID", "#CC79A7"),
    "forest": ("Isolation forest", "#E69F00"),
    "clip_score": ("CLIP score", "#8C8C8C"),
    "norm": ("Norm", "#000000"),
    "safeclip": ("SafeCLIP", "#999933"),
    "abl": ("ABL", "#882255"),
    "agreement": ("Agreement", "#7A5230"),
    "loss_slope": ("Loss slope", "#C2577E"),
    "forgetting": ("Forgetting", "#5B2A4A"),
    "cognitive_distillation": ("Cognitive Distillation", "#332288"),
    "bdetclip": ("BDetCLIP", "#117733"),
    "subspace": ("Subspace", "#AA4466"),
    "pyod": ("PyOD", "#6699CC"),
    "cleanlab": ("cleanlab", "#661100"),
}
# Ink and gap in line widths, one pattern for each detector: colours alone are hard to tell apart, for some eyes
# more than for others. Detectors with inputs beside the embeddings have dots, a control short even dashes.
_DASHES: dict[str, tuple[float, ...]] = {
    "tandem": (),
    "slof": (7, 2),
    "slof_text": (7, 2, 1, 2),
    "slof_pair": (7, 2, 4, 2),
    "dao": (7, 2, 2, 2),
    "lof": (4, 1.2),
    "kdist": (7, 2, 2, 2, 2, 2),
    "lid": (12, 3),
    "forest": (4, 1.2, 1.5, 1.2),
    "pyod": (12, 2, 4, 2),
    "cleanlab": (7, 4),
    "flicker": (1, 1),
    "drift": (1, 1, 3, 1),
    "drift_pursuit": (1, 1, 9, 1.5),
    "multiscale": (9, 1.5, 4, 1.5),
    "pursuit": (9, 1.5, 1.5, 1.5),
    "clip_score": (1, 2.2),
    "safeclip": (1, 1, 1, 3),
    "abl": (1, 3.5),
    "agreement": (1, 1, 12, 2),
    "loss_slope": (1, 1, 3, 3),
    "forgetting": (1, 1, 1, 5),
    "cognitive_distillation": (1, 1, 1, 1, 1, 4),
    "bdetclip": (1, 1, 5, 1),
    "subspace": (1, 1, 1, 1, 5, 1),
    "norm": (3, 3),
}
_SPARE_DASHES = ((10, 2, 2, 2), (5, 3), (10, 5), (2, 1), (5, 2, 2, 2, 2, 2, 2, 2))
LINES = "dots: captions, prompts, losses or masks; short even dashes: control; all others: embeddings alone"
_SPARE = ("#4B6A2E", "#7B5EA7", "#B07A3A", "#5F5F9E", "#3E7C8C", "#A03060")
_ATTACKS = {
    "badnets": "BadNets",
    "blended": "Blended",
    "wanet": "WaNet",
    "wanet_field": "WaNet, given field",
    "sig": "SIG",
    "sig_blended": "SIG, blended",
    "nashville": "Nashville",
    "blto": "BLTO",
    "clean_label": "Clean label",
    "caption_only": "Caption only",
    "badclip": "BadCLIP",
    "blended_other": "Blended, own picture",
    "bpp": "BppAttack",
    "multi_trigger": "Multi-trigger",
    "multi_target": "Multi-target",
    "mislabel": "Mislabelled",
    "none": "No poisoning",
    "targeted": "Targeted",
    "natural": "Natural backdoor",
    "adaptive_spread": "Adaptive, spread",
    "adaptive_flood": "Adaptive, flood",
}

_RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E8EBEE",
    "grid.linewidth": 0.7,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "figure.titlesize": 10.5,
    "legend.frameon": False,
    "figure.dpi": 130,
    "savefig.dpi": 130,
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # real text in the PDF, not outlines
}


@contextmanager
def house_style() -> Iterator[None]:
    """The house's settings while a figure is drawn or saved; the caller's settings return afterwards."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


def styled(draw: Callable[P, Drawn]) -> Callable[P, Drawn]:
    """Decorate a function that draws a figure so that it draws in the house style."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Drawn:
        with house_style():
            return draw(*args, **kwargs)

    return drawn


def panels(
    lines: int,
    columns: int,
    size: tuple[float, float],
    margins: tuple[float, float, float, float],
    gaps: tuple[float, float],
    **shared: Any,
) -> tuple[Figure, np.ndarray]:
    """A figure with (lines, columns) axes of `size`, inside `margins` (left, right, top, bottom) and with `gaps`
    between them (across, down), all in inches.

    matplotlib's constrained layout would measure every text twice for this, which takes longer than drawing.
    """
    from matplotlib.figure import Figure

    left, right, top, bottom = margins
    width = left + columns * size[0] + (columns - 1) * gaps[0] + right
    height = top + lines * size[1] + (lines - 1) * gaps[1] + bottom
    figure = Figure(figsize=(width, height))
    places = {
        "left": left / width,
        "right": 1 - right / width,
        "top": 1 - top / height,
        "bottom": bottom / height,
        "wspace": gaps[0] / size[0],
        "hspace": gaps[1] / size[1],
    }
    return figure, figure.subplots(lines, columns, squeeze=False, gridspec_kw=places, **shared)


def headed(figure: Figure, title: str, note: str = "") -> None:
    """A title at the top left, and how to read the figure at the foot."""
    width, height = figure.get_size_inches()
    figure.text(0.1 / width, 1 - 0.08 / height, title, fontsize=10.5, va="top")
    if note:
        wrapped = "\n".join(part for line in note.split("\n") for part in wrap(line, int(width / 0.066)))
        figure.text(0.1 / width, 0.07 / height, wrapped, fontsize=8, color=GREY, va="bottom", linespacing=1.1)


def line_note(detectors: Sequence[str]) -> str:
    """What the lines of these detectors mean, if they are of more than one kind."""
    return LINES if any(_DASHES.get(name, ())[:1] in ((1,), (3,)) for name in detectors) else ""


def label_lines(axes: Axes, ends: Sequence[tuple[float, str, Any]]) -> None:
    """Write each line's label at the right edge, at its last value, moved apart where labels would overlap.

    `ends` has (last value, label, colour and dashes of the line); call it when the y limits are final.
    """
    low, high = axes.get_ylim()
    inches = axes.get_position().height * axes.figure.get_figheight()  # type: ignore[union-attr]
    step = 0.118 / inches  # of one label, as a share of the axis
    ordered = sorted(ends, key=lambda end: -end[0])
    wanted = [(value - low) / (high - low) for value, *_ in ordered]
    places: list[float] = []
    for want in wanted:  # from the top down, each below the one before
        places.append(min(want, places[-1] - step) if places else min(want, 1.0))
    floor = 0.0
    for at in reversed(range(len(places))):  # what fell below the axis goes up again, and moves the others
        places[at] = max(places[at], floor)
        floor = places[at] + step
    for (_, label, look), want, place in zip(ordered, wanted, places, strict=True):
        axes.plot(
            [1.0, 1.04, 1.1], [want, place, place], transform=axes.transAxes, clip_on=False, linewidth=1.4, **look
        )
        axes.text(1.12, place, label, transform=axes.transAxes, fontsize=7.5, va="center")


def save(figure: Figure, folder: Path, stem: str, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Save a figure as `<folder>/<stem>.<format>` for each format, and return the paths."""
    paths = [Path(folder) / f"{stem}.{form}" for form in formats]
    with house_style():
        for path in paths:
            figure.savefig(path, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)
    return paths


def detector_label(name: str) -> str:
    """A detector's name as it is printed: `kdist` -> `k-dist`; an unknown name stays as it is."""
    known = _DETECTORS.get(name)
    return known[0] if known else name.replace("_", " ")


def attack_label(name: str) -> str:
    """An attack's name as it is printed: `badnets` -> `BadNets`."""
    return _ATTACKS.get(name, name.replace("_", " "))


def attack_order(name: str) -> int:
    """Where an attack stands in every table and figure."""
    return list(_ATTACKS).index(name) if name in _ATTACKS else len(_ATTACKS)


def detector_order(name: str) -> int:
    """Where a detector stands in every table and figure: density ratios first, controls last."""
    if name in CONTROLS:
        return 2 * len(_DETECTORS)
    return list(_DETECTORS).index(name) if name in _DETECTORS else len(_DETECTORS)


def detector_colour(name: str, others: Sequence[str] = ()) -> str:
    """The colour of a detector; one unknown to the house takes a spare one by its place among the others."""
    if name in _DETECTORS:
        return _DETECTORS[name][1]
    unknown = sorted({other for other in [*others, name] if other not in _DETECTORS})
    return _SPARE[unknown.index(name) % len(_SPARE)]


def detector_dashes(name: str, others: Sequence[str] = ()) -> tuple[float, ...]:
    """Ink and gap of a detector's line in turn, in line widths; () is solid. Unknown ones take a spare pattern."""
    if name in _DASHES:
        return _DASHES[name]
    unknown = sorted({other for other in [*others, name] if other not in _DASHES})
    return _SPARE_DASHES[unknown.index(name) % len(_SPARE_DASHES)]


def detector_line(name: str, others: Sequence[str] = ()) -> dict[str, Any]:
    """Colour and dashes of a detector's line."""
    dashes = detector_dashes(name, others)
    return {"color": detector_colour(name, others), "linestyle": (0, dashes) if dashes else "-"}
