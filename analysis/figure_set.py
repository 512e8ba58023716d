"""All figures of a store: those of each result group's sweeps, and the views of the first seed of each attack.

Only what is new is drawn; attacks are drawn in parallel.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.aggregate import case_order, result_groups, usual
from analysis.output_cache import OutputCache
from analysis.stored_cells import Scene, StoredCell, case, scenes

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console


def draw_all(
    table: pd.DataFrame,
    cells: list[StoredCell],
    store: Path,
    cache: OutputCache,
    formats: Sequence[str],
    console: Console,
) -> list[Path]:
    """Draw every figure whose cells exist and say which have none; return the files of all."""
    files: list[Path] = []
    waiting: list[tuple[str, str, Scene, Path]] = []
    fresh = 0
    for name, rows in result_groups(table):
        folder = cache.out / f"figures_{stem(name)}"
        folder.mkdir(parents=True, exist_ok=True)
        files += _sweep_figures(name, rows, cells, folder, cache, formats, console)
        places = sorted(set(usual(rows)["place"]))
        for scene in first_seeds(scenes([cells[place] for place in places], store)):
            title = f"{folder.name}/{stem(case(scene.row))}"
            digest = cache.digest(sorted(cell.folder.name for cell in scene.cells), formats)
            known = cache.files(title, digest)
            if known is None:
                waiting.append((title, digest, scene, folder))
            else:
                fresh += len(known)
                files += known
    for title, digest, found in _in_parallel(waiting, formats):
        cache.note(title, digest, found)
        files += found
    digest = cache.digest(sorted(cell.folder.name for cell in cells), formats)
    files += cache.files("by_model", digest) or _across_groups(table, cache, digest, formats, console)
    text = f"{len(files)} figure files in {cache.out}" + (f", {fresh} of them as before" if fresh else "")
    console.print(text, highlight=False)
    return files


def _in_parallel(
    waiting: list[tuple[str, str, Scene, Path]], formats: Sequence[str]
) -> Iterator[tuple[str, str, list[Path]]]:
    from joblib import Parallel, delayed

    # A process costs a second or two of imports, as much as an attack's figures.
    jobs = max(1, min(os.cpu_count() or 1, len(waiting) // 2))
    draw = Parallel(n_jobs=jobs, return_as="generator")
    for (title, digest, _, _), found in zip(
        waiting, draw(delayed(draw_scene)(scene, folder, formats) for *_, scene, folder in waiting), strict=True
    ):
        yield title, digest, found


def _sweep_figures(
    name: str,
    rows: pd.DataFrame,
    cells: list[StoredCell],
    folder: Path,
    cache: OutputCache,
    formats: Sequence[str],
    console: Console,
) -> list[Path]:
    from analysis.ablations import figures
    from analysis.style import save

    digest = cache.digest(sorted(cells[place].folder.name for place in rows["place"]), formats)
    known = cache.files(folder.name, digest)
    if known is not None:
        return known
    files: list[Path] = []
    missing = []
    for title, draw in figures().items():
        if title == "by_model":
            continue
        figure = draw(rows)
        if figure is None:
            missing.append(title)
        else:
            files += save(figure, folder, title, formats)
    if missing:
        console.print(f"no cells yet ({name}): {', '.join(missing)}", style="yellow", highlight=False)
    cache.note(folder.name, digest, files)
    return files


def _across_groups(
    table: pd.DataFrame, cache: OutputCache, digest: str, formats: Sequence[str], console: Console
) -> list[Path]:
    from analysis.ablations import figures
    from analysis.style import save

    figure = figures()["by_model"](table)
    if figure is None:
        console.print("no cells yet (all result groups): by_model", style="yellow", highlight=False)
        return []
    files = save(figure, cache.out, "by_model", formats)
    cache.note("by_model", digest, files)
    return files


def first_seeds(found: Sequence[Scene]) -> list[Scene]:
    """The lowest seed's scene of each case, in order of the cases."""
    first: dict[str, Scene] = {}
    for scene in sorted(found, key=lambda scene: int(scene.row.get("seed") or 0)):
        first.setdefault(case(scene.row), scene)
    return [first[name] for name in sorted(first, key=case_order)]


def draw_scene(scene: Scene, folder: Path, formats: Sequence[str]) -> list[Path]:
    """ROC curves, histograms and the 2-D view (coloured by k-dist, as the paper's first figure, where it was
    run).
    """
    import numpy as np

    from analysis import embedding_figure, figures
    from analysis.report import leading_cell, target_class
    from analysis.style import detector_label, save

    name, is_poison = stem(case(scene.row)), scene.cells[0].is_poison
    files = save(figures.roc(scene.cells, is_poison), folder, f"roc_{name}", formats)
    files += save(figures.score_histograms(scene.cells, is_poison), folder, f"scores_{name}", formats)
    kdist = [cell for cell in figures.headline(scene.cells) if cell.row["detector"] == "kdist"]
    shown = kdist[0] if kdist else leading_cell(scene.cells)
    assert shown is not None
    assert shown.scores is not None
    view = embedding_figure.flat_view(np.asarray(scene.embeddings))
    target = target_class(scene.pairs, scene.row.get("target"))
    label, about = detector_label(str(shown.row["detector"])), figures.heading(scene.row, is_poison)
    figure = embedding_figure.embedding(view, shown.scores, is_poison, target, label, about=about)
    return files + save(figure, folder, f"embedding_{name}", formats)


def stem(name: str) -> str:
    """A name as part of a file's name."""
    return "".join(char if char.isalnum() else "_" for char in name).strip("_") or "all"
