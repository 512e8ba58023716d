"""The HTML report: one self-contained file that works without a server or a network.

Python gathers the numbers, curves, thumbnails and neighbours into one JSON object; `report.html` (Jinja2)
holds the page that draws them. A *scene* is one attack, one model and one seed: the cells of the same
embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.aggregate import aggregate, case_label, case_order, is_control_case, result_groups, usual
from analysis.pages.rendering import render
from analysis.pages.scenes import scene_data, scene_name, side
from analysis.stored_cells import Scene, StoredCell, case, scenes
from analysis.style import CONTROLS, detector_colour, detector_dashes, detector_label, detector_order
from analysis.table_export import sizes
from analysis.tables import is_control, is_raw

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "detector",
    "attack",
    "side",
    "seed",
    "auroc",
    "auprc",
    "fpr95",
    "fpr100",
    "recall_at_1pct",
    "k",
    "scope",
    "scope_size",
    "modality",
    "rate",
    "n",
    "n_poison",
    "zero_shot_top1",
    "asr",
    "seconds",
    "memory_mb",
    "status",
)


def write_page(
    table: pd.DataFrame,
    cells: list[StoredCell],
    store: Path,
    path: Path,
    most_scenes: int = 6,
    summaries: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Write the page for all cells; views and galleries for at most `most_scenes` scenes, one seed of each
    first. `summaries` holds what `aggregate.aggregate` gave for each result group's usual rows, if it is known.
    """
    names = list(dict.fromkeys(table["detector"]))
    rows = [usual(part) for _, part in result_groups(table)]
    places = sorted({int(place) for part in rows for place in part["place"]})
    found = _in_order(scenes([cells[place] for place in places], store))
    images: dict[str, int] = {}  # each picture once: scenes of one seed share their clean samples
    data = {
        "columns": COLUMNS,
        "cells": [_row(place, cell, cells, names) for place, cell in enumerate(cells)],
        "groups": [
            {"name": name, "rows": _summary(summaries[name] if summaries else aggregate(part, cells))}
            for (name, _), part in zip(result_groups(table), rows, strict=True)
        ],
        "detectors": [
            {
                "name": name,
                "label": detector_label(name),
                "colour": detector_colour(name, names),
                "dashes": detector_dashes(name, names),
            }
            for name in sorted(names, key=detector_order)
        ],
        "scenes": [scene_data(scene, images) for scene in found[:most_scenes]],
        "left_out": [scene_name(scene) for scene in found[most_scenes:]],
        "store": str(store),
    }
    data["images"] = list(images)
    render("results.html", data, path)
    return path


def _in_order(found: Sequence[Scene]) -> list[Scene]:
    """The first seed of every case, then the second of every case, and so on."""
    seen: dict[str, int] = {}
    ranked = []
    for scene in sorted(found, key=lambda scene: int(scene.row.get("seed") or 0)):
        name = case(scene.row) + str(scene.row.get("model"))
        seen[name] = seen.get(name, 0) + 1
        ranked.append((seen[name], case_order(case(scene.row)), scene))
    return [scene for _, _, scene in sorted(ranked, key=lambda item: item[:2])]


def _row(place: int, cell: StoredCell, cells: Sequence[StoredCell], names: Sequence[str]) -> dict[str, Any]:
    row = {column: cell.row.get(column) for column in COLUMNS}
    name = str(cell.row["detector"])
    return row | {
        "place": place,
        "name": name,
        "detector": detector_label(name),
        "case": case(cell.row),
        "attack": case_label(case(cell.row)),
        "side": side(cell),
        "control": is_control(cell.row),
        "status": cell.row.get("status", "ok"),
        "error": cell.row.get("error") or "",
        "colour": detector_colour(name, names),
    }


def _summary(summary: pd.DataFrame) -> list[dict[str, Any]]:
    size = sizes(summary)
    wanted = ("case", "detector", "normalise", "auroc", "auroc_std", "auroc_low", "auroc_high", "seeds", "status")
    lines = []
    for row in summary.astype(object).to_dict("records"):
        line = {str(name): row[name] for name in (*wanted, "asr", "zero_shot_top1", "error")}
        normalise = row["normalise"]
        either = normalise is None or normalise != normalise
        line |= {
            "side": "either" if either else "raw" if is_raw(normalise) else "normalised",
            "attack": case_label(row["case"]) + size.get(row["case"], ""),
            "control": is_control_case(row["case"]),
            "control_detector": row["detector"] in CONTROLS,
            "attack_failed": row["attack_succeeded"] is False,
        }
        lines.append(line)
    return lines
