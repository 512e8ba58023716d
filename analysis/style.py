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
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")
Drawn = TypeVar("Drawn")  # a figure, or None where there is nothing to draw

INK, GREY, FAINT = "#222222", "#6E7781", "#D5DAE0"
CLEAN, POISON, TARGET = "#8396AB", "#D55E00", "#0072B2"  # samples, everywhere
GOOD = "#009E73"

CONTROLS = {"norm": "embedding length alone"}
CONTROL_ATTACKS = {"mislabel": "target caption without a trigger", "none": "no poisoning"}
LEADERS = ("tandem", "slof", "dao", "lof")  # whose view of the data is shown, the best of them first

_DETECTORS = {  # name: (label, colour)
    "tandem": ("Tandem", "#AA4499"),
    "slof": ("SLOF", "#0072B2"),
    "dao": ("DAO", "#D55E00"),
    "lof": ("LOF", "#009E73"),
    "kdist": ("k-dist", "#56B4E9"),
    "flicker": ("Flicker", "#44AA99"),
    "lid": ("LID", "#CC79A7"),
    "forest": ("Isolation forest", "#E69F00"),
    "isolation_forest": ("Isolation forest", "#E69F00"),
    "clip_score": ("CLIP score", "#8C8C8C"),
    "clipscore": ("CLIP score", "#8C8C8C"),
    "norm": ("Norm", "#000000"),
    "safeclip": ("SafeCLIP", "#999933"),
    "abl": ("ABL", "#882255"),
    "cognitive_distillation": ("Cognitive Distillation", "#332288"),
    "cd": ("Cognitive Distillation", "#332288"),
}
_SPARE = ("#117733", "#661100", "#6699CC", "#AA4466", "#4B6A2E", "#7B5EA7")
_ATTACKS = {
    "badnets": "BadNets", "blended": "Blended", "wanet": "WaNet", "sig": "SIG", "nashville": "Nashville",
    "blto": "BLTO", "clean_label": "Clean label", "multi_trigger": "Multi-trigger", "mislabel": "Mislabelled",
    "none": "No poisoning", "targeted": "Targeted", "natural": "Natural backdoor",
}  # fmt: skip

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
    "lines.linewidth": 1.8,
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


def save(figure: Figure, folder: Path, stem: str, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Save a figure as `<folder>/<stem>.<format>` for each format, and return the paths."""
    paths = [Path(folder) / f"{stem}.{form}" for form in formats]
    with house_style():
        for path in paths:
            figure.savefig(path, metadata={"CreationDate": None} if path.suffix == ".pdf" else None)
            figure.set_layout_engine("none")  # keep the layout, which takes the most time, for the next format
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
