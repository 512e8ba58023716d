"""A run's result on disk and on the screen: results.csv, four figures and the printed table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis import embedding_figure, figures, suspects_figure
from analysis.style import LEADERS, save
from analysis.tables import cell_label, frame, is_control, run_table
from experiments.runtime.safe_text import csv_table

if TYPE_CHECKING:
    from rich.console import Group

    from attacks import PoisonedPairs
    from experiments.pipeline.evaluation import RunResult

log = logging.getLogger(__name__)

TOP = 24  # samples in suspects.png


def write(result: RunResult, folder: str | Path, top: int = TOP) -> Group:
    """Write results.csv, roc.png, scores.png, embedding.png and suspects.png; return the table to print.

    Without a single scored cell only results.csv is written: the table then shows the errors.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [cell.row for cell in result.cells]
    csv_table(frame(rows)).to_csv(folder / "results.csv", index=False)

    is_poison = np.asarray(result.truth, bool)  # a natural backdoor's samples are not in the plan
    best = leading_cell(result.cells)
    if best is None:
        log.warning("no cell was scored, so there are no figures; see the errors in %s", folder / "results.csv")
        return run_table(rows, result.metadata)
    assert best.scores is not None
    for cell in result.cells:
        if cell.scores is not None and cell.scores.shape != is_poison.shape:
            raise ValueError(
                f"cell {cell.row['detector']}: scores of shape {cell.scores.shape}, samples {is_poison.shape}"
            )

    name = cell_label(best.row, [cell.row for cell in figures.headline(result.cells)])
    save(figures.roc(result.cells, is_poison), folder, "roc")
    save(figures.score_histograms(result.cells, is_poison), folder, "scores")
    view = embedding_figure.flat_view(np.asarray(result.embeddings.image))
    target = target_class(result.pairs, result.metadata.get("target"))
    about = figures.heading(best.row, is_poison)
    save(embedding_figure.embedding(view, best.scores, is_poison, target, name, about=about), folder, "embedding")

    rows_shown = np.argsort(-best.scores, kind="stable")[:top]
    captions = result.pairs.captions
    sheet = suspects_figure.suspects(
        result.pairs.images(rows_shown),
        [captions[int(row)] for row in rows_shown],
        best.scores[rows_shown].tolist(),
        is_poison[rows_shown].tolist(),
        name,
        np.asarray(result.pairs.ids)[rows_shown].tolist(),
    )
    save(sheet, folder, "suspects")
    return run_table(rows, result.metadata)


def leading_cell(cells: Sequence[figures.S]) -> figures.S | None:
    """The cell that the views show: the best of `LEADERS` in the headline, else the best of any kind.

    On clean data there is no best; then it is the first of them that was run.
    """
    shown = [cell for cell in figures.headline(cells) if not is_control(cell.row)]

    def place(cell: figures.S) -> tuple[bool, float, int]:
        name = str(cell.row["detector"])
        known = name in LEADERS
        auroc = cell.row.get("auroc")
        value = float(auroc) if auroc is not None and np.isfinite(auroc) else 0.0
        return not known, -value, LEADERS.index(name) if known else len(LEADERS)

    return min(shown or figures.scored(cells), key=place, default=None)


def target_class(pairs: PoisonedPairs, target: str | None) -> np.ndarray | None:
    """(n,) whether a sample's caption names a class that the attack aims at; None where there is no class.

    The classes are the plan's, and for an empty plan those of `target` (separated by ", ").
    """
    from attacks.captions import holds_word

    words = set(pairs.plan.targets) or set((target or "").split(", "))
    marks = [holds_word(pairs.captions, word) for word in sorted(words) if word]
    return np.logical_or.reduce(marks) if marks else None
