"""`python -m analysis [table|figures|report|paper]`: from the store alone, in seconds, without torch or a
GPU.

table    the main table on the screen, and as CSV, Markdown and LaTeX, with the paper's numbers beside ours
figures  every figure whose cells exist, as PNG and PDF
report   one self-contained HTML page
paper    all of these
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.cells import Scene, StoredCell, cell_frame, read_cells, scenes
from analysis.grid import aggregate, studies, usual

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m analysis`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    choices = ("table", "figures", "report", "paper")
    parser.add_argument("what", nargs="?", default="table", choices=choices, help="default: table")
    parser.add_argument("--store", default="store", type=Path, help="the stage store (default: store)")
    parser.add_argument("--out", default=Path("runs/analysis"), type=Path, help="default: runs/analysis")
    parser.add_argument("--formats", nargs="+", default=["png", "pdf"], help="of figures (default: png pdf)")
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="COLUMN=VALUE",
        help="only cells whose row says so, such as attack=badnets seed=0",
    )  # fmt: skip
    parser.add_argument("--scenes", type=int, default=6, help="attack-and-seed views in the page (default: 6)")
    options = parser.parse_args(arguments)

    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=170)
    where = dict(item.partition("=")[::2] for item in options.where)
    try:
        cells = read_cells(options.store, where)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    if not cells:
        parser.error(f"no cells in {options.store}{' with ' + ' '.join(options.where) if where else ''}")
    table = cell_frame(cells)
    failed = int((table["status"] != "ok").sum())
    console.print(f"{len(cells)} cells in {options.store}, {failed} failed", highlight=False)
    if options.what in ("table", "paper"):
        write_tables(table, cells, options.out, console)
    if options.what in ("figures", "paper"):
        stamp = Stamp(options.out, "figures", cells, options.formats)
        if stamp.same():
            console.print(f"figures in {options.out}: nothing new", highlight=False)
        else:
            write_figures(table, cells, options.store, options.out, options.formats, console)
            stamp.set()
    if options.what in ("report", "paper"):
        path, stamp = options.out / "report.html", Stamp(options.out, "report", cells, [options.scenes])
        if not (path.exists() and stamp.same()):
            from analysis.page import write_page

            write_page(table, cells, options.store, path, options.scenes)
            stamp.set()
        console.print(f"page: {path} ({path.stat().st_size / 1e6:.1f} MB)", highlight=False)
    return 0


class Stamp:
    """Whether something was made before of the same cells, options and code; `<out>/.<what>` remembers."""

    def __init__(self, out: Path, what: str, cells: Sequence[StoredCell], options: Sequence[object]) -> None:
        digest = hashlib.sha256(repr(options).encode())
        for cell in cells:
            digest.update(f"{cell.folder.name} {sorted(cell.row.items(), key=str)}\n".encode())
        for source in sorted(Path(__file__).parent.glob("*.*")):
            digest.update(source.read_bytes())
        self.file, self.digest = out / f".{what}", digest.hexdigest()

    def same(self) -> bool:
        return self.file.exists() and self.file.read_text() == self.digest

    def set(self) -> None:
        self.file.write_text(self.digest)


def write_tables(table: pd.DataFrame, cells: list[StoredCell], out: Path, console: Console) -> None:
    """`cells.csv`, a main table per study, and the comparison with the paper."""
    from analysis import hindsight, published, written

    out.mkdir(parents=True, exist_ok=True)
    table.drop(columns="place").to_csv(out / "cells.csv", index=False)
    summaries = {}
    for name, rows in studies(table):
        summaries[name] = summary = aggregate(usual(rows), cells)
        title = f"Detection of backdoor samples ({name})"
        paths = written.write_tables(summary, out, f"main_table_{_stem(name)}", title)
        console.print(written.console_table(summary, title))
        console.print("  ".join(str(path) for path in paths), style="dim", highlight=False)
        bounds = hindsight.hindsight(rows)
        if bounds is not None:
            bounds.to_csv(out / f"hindsight_{_stem(name)}.csv", index=False)
            text = hindsight.markdown(bounds, f"Beside the best k by the truth ({name})")
            (out / f"hindsight_{_stem(name)}.md").write_text(text)
    beside = published.side_by_side(summaries)
    beside.to_csv(out / "beside_the_paper.csv", index=False)
    (out / "beside_the_paper.md").write_text(published.markdown(beside))


def write_figures(
    table: pd.DataFrame, cells: list[StoredCell], store: Path, out: Path, formats: Sequence[str], console: Console
) -> None:
    """Every sweep figure whose cells exist, and the views of the first seed of each attack."""
    from analysis.ablations import figures
    from analysis.style import save

    made: list[Path] = []
    missing: dict[str, list[str]] = {}
    for name, rows in studies(table):
        folder = out / f"figures_{_stem(name)}"
        folder.mkdir(parents=True, exist_ok=True)
        for stem, draw in figures().items():
            if stem == "by_model":
                continue
            figure = draw(rows)
            if figure is None:
                missing.setdefault(name, []).append(stem)
            else:
                made += save(figure, folder, stem, formats)
        places = set(usual(rows)["place"])
        for scene in first_seeds(scenes([cells[place] for place in sorted(places)], store)):
            made += _draw_scene(scene, folder, formats)
    figure = figures()["by_model"](table)  # across studies
    if figure is None:
        missing["all studies"] = ["by_model"]
    else:
        made += save(figure, out, "by_model", formats)
    console.print(f"{len(made)} figure files in {out}", highlight=False)
    for name, stems in missing.items():
        console.print(f"no cells yet ({name}): {', '.join(stems)}", style="yellow", highlight=False)


def first_seeds(found: Sequence[Scene]) -> list[Scene]:
    """The lowest seed's scene of each case, in order of the cases."""
    from analysis.cells import case
    from analysis.grid import case_order

    first: dict[str, Scene] = {}
    for scene in sorted(found, key=lambda scene: int(scene.row.get("seed") or 0)):
        first.setdefault(case(scene.row), scene)
    return [first[name] for name in sorted(first, key=case_order)]


def _draw_scene(scene: Scene, folder: Path, formats: Sequence[str]) -> list[Path]:
    """ROC curves, histograms and the 2-D view (coloured by k-dist, as the paper's first figure, where it was
    run).
    """
    import numpy as np

    from analysis import figures
    from analysis.cells import case
    from analysis.report import leading_cell, target_class
    from analysis.style import detector_label, save

    name, is_poison = _stem(case(scene.row)), scene.cells[0].is_poison
    made = save(figures.roc(scene.cells, is_poison), folder, f"roc_{name}", formats)
    made += save(figures.score_histograms(scene.cells, is_poison), folder, f"scores_{name}", formats)
    kdist = [cell for cell in figures.headline(scene.cells) if cell.row["detector"] == "kdist"]
    shown = kdist[0] if kdist else leading_cell(scene.cells)
    assert shown is not None
    assert shown.scores is not None
    view = figures.flat_view(np.asarray(scene.embeddings))
    target = target_class(scene.pairs, scene.row.get("target"))
    label = detector_label(str(shown.row["detector"]))
    figure = figures.embedding(view, shown.scores, is_poison, target, label)
    return made + save(figure, folder, f"embedding_{name}", formats)


def _stem(name: str) -> str:
    return "".join(char if char.isalnum() else "_" for char in name).strip("_") or "all"


if __name__ == "__main__":
    sys.exit(main())
