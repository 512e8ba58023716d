"""The HTML report: one self-contained file that works without a server or a network.

Python gathers the numbers, curves, thumbnails and neighbours into one JSON object; `report.html` (Jinja2)
holds the page that draws them. A *scene* is one attack, one model and one seed: the cells that look at the
same embeddings.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis import figures
from analysis.aggregate import aggregate, case_label, case_order, is_control_case, studies, usual
from analysis.report import leading_cell, target_class
from analysis.stored_cells import Scene, StoredCell, case, scenes
from analysis.style import CONTROLS, detector_colour, detector_dashes, detector_label, detector_order
from analysis.table_export import sizes
from analysis.tables import is_control, is_raw, variant, warnings
from detect.embeddings import unit
from detect.search.cosine import most_similar

if TYPE_CHECKING:
    import pandas as pd

SUSPECTS = 24  # in a gallery
WITH_NEIGHBOURS = 12  # of these the first ones come with their nearest neighbours
NEIGHBOURS = 5
POINTS = 4000  # in the 2-D view
THUMBNAIL = 96  # pixels at most
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
    first. `summaries` holds what `grid.aggregate` gave for each study's usual rows, if that is known already.
    """
    names = list(dict.fromkeys(table["detector"]))
    rows = [usual(part) for _, part in studies(table)]
    places = sorted({int(place) for part in rows for place in part["place"]})
    found = _in_order(scenes([cells[place] for place in places], store))
    images: dict[str, int] = {}  # each picture once: scenes of one seed share their clean samples
    data = {
        "columns": COLUMNS,
        "cells": [_row(place, cell, cells, names) for place, cell in enumerate(cells)],
        "studies": [
            {"name": name, "rows": _summary(summaries[name] if summaries else aggregate(part, cells))}
            for (name, _), part in zip(studies(table), rows, strict=True)
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
        "scenes": [_scene(scene, images) for scene in found[:most_scenes]],
        "left_out": [_name(scene) for scene in found[most_scenes:]],
        "store": str(store),
    }
    data["images"] = list(images)
    render("results.html", data, path)
    return path


def render(template: str, data: Any, path: Path) -> None:
    """Write a page of this folder, with its data inside, as one self-contained file."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(), trim_blocks=True
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(data), separators=(",", ":"), allow_nan=False)
    # Inside a <script> element only "<" could end it; everything else is JSON as it is.
    page = environment.get_template(template).render(data=text.replace("<", "\\u003c"))
    path.write_text(page, encoding="utf-8")


def _in_order(found: Sequence[Scene]) -> list[Scene]:
    """The first seed of every case, then the second of every case, and so on."""
    seen: dict[str, int] = {}
    ranked = []
    for scene in sorted(found, key=lambda scene: int(scene.row.get("seed") or 0)):
        name = case(scene.row) + str(scene.row.get("model"))
        seen[name] = seen.get(name, 0) + 1
        ranked.append((seen[name], case_order(case(scene.row)), scene))
    return [scene for _, _, scene in sorted(ranked, key=lambda item: item[:2])]


def _name(scene: Scene) -> str:
    row = scene.row
    parts = [case_label(case(row)), str(row.get("model") or ""), f"seed {row.get('seed')}"]
    return ", ".join(part for part in parts if part)


def _row(place: int, cell: StoredCell, cells: Sequence[StoredCell], names: Sequence[str]) -> dict[str, Any]:
    row = {column: cell.row.get(column) for column in COLUMNS}
    name = str(cell.row["detector"])
    return row | {
        "place": place,
        "name": name,
        "detector": detector_label(name),
        "case": case(cell.row),
        "attack": case_label(case(cell.row)),
        "side": _side(cell),
        "control": is_control(cell.row),
        "status": cell.row.get("status", "ok"),
        "error": cell.row.get("error") or "",
        "colour": detector_colour(name, names),
    }


def _side(cell: StoredCell) -> str:
    normalise = cell.row.get("normalise")
    return "either" if normalise is None else "raw" if is_raw(normalise) else "normalised"


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
            "not_embedded": row["attack_succeeded"] is False,
        }
        lines.append(line)
    return lines


def _scene(scene: Scene, images: dict[str, int]) -> dict[str, Any]:
    """Curves of every cell, the 2-D view, galleries, and the images that they show."""
    is_poison = scene.cells[0].is_poison
    ordered = sorted(scene.cells, key=lambda cell: (detector_order(str(cell.row["detector"])), _side(cell)))
    rows = [cell.row for cell in ordered]
    lead = leading_cell(scene.cells)
    shown, view = _view(scene, is_poison)
    galleries: dict[str, list[int]] = {}
    lines = []
    for place, cell in enumerate(ordered):
        scores = np.asarray(cell.scores)
        order = np.argsort(-scores, kind="stable")
        ranks = np.empty(len(scores))
        ranks[order[::-1]] = np.linspace(0, 255, len(scores))
        galleries[str(place)] = order[:SUSPECTS].tolist()
        lines.append(
            {
                "name": cell.row["detector"],
                "label": variant(cell.row, rows),
                "side": _side(cell),
                "control": is_control(cell.row),
                "auroc": cell.row.get("auroc"),
                "auprc": cell.row.get("auprc"),
                "scores": [float(f"{value:.5g}") for value in scores[order[:SUSPECTS]]],
                "ranks": _packed(ranks[shown], np.uint8),
                **_curves(scores, is_poison),
            }
        )
    row = scene.row
    near = _nearest(scene.embeddings, sorted({r for g in galleries.values() for r in g[:WITH_NEIGHBOURS]}))
    wanted = sorted({r for g in galleries.values() for r in g} | {r for rows in near.values() for r, _ in rows})
    return {
        "name": _name(scene),
        "case": case(row),
        "attack": case_label(case(row)),
        "seed": row.get("seed"),
        "n": len(is_poison),
        "n_poison": int(is_poison.sum()),
        "asr": row.get("asr"),
        "zero_shot_top1": row.get("zero_shot_top1"),
        "warnings": warnings(row),
        "cells": lines,
        "view": view,
        "lead": next((place for place, cell in enumerate(ordered) if cell is lead), 0),
        "galleries": galleries,
        "near": near,
        "samples": _samples(scene, wanted, is_poison, images),
    }


def _curves(scores: np.ndarray, is_poison: np.ndarray) -> dict[str, Any]:
    """ROC on 120 false positive rates, precision on 80 recalls, and both densities."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=np.nan))  # tied scores are one threshold
    found = np.cumsum(is_poison[order])[ends]
    total, clean = max(int(is_poison.sum()), 1), max(int((~is_poison).sum()), 1)
    false = np.concatenate([[0], (ends + 1 - found) / clean])
    true = np.concatenate([[0], found / total])
    at = np.unique(np.concatenate([np.geomspace(1 / clean, 1, 80), np.linspace(0, 1, 40)]))
    last = np.flatnonzero(np.diff(false, append=2))  # the highest point above each false positive rate
    roc = np.interp(at, false[last], true[last])  # straight between thresholds, as tied scores ask for
    recalls = np.linspace(1 / total, 1, min(80, total))
    precision = found / (ends + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # interpolated: the best at this recall or a higher one
    first = np.searchsorted(found / total, recalls - 1e-9)
    parts = [part for part in (scores[~is_poison], scores[is_poison]) if len(part)]
    ends_at = np.concatenate([np.quantile(part, (0.002, 0.998)) for part in parts])
    low, high = float(ends_at.min()), float(ends_at.max())
    high = high if high > low else low + 1
    counts = []
    for part in parts:
        bars = int(np.clip(2 * np.sqrt(len(part)), 12, 40))  # few samples, wide bars
        counts.append(np.histogram(np.clip(part, low, high), bars, (low, high))[0])
    return {
        "roc": [_short(at), _short(roc)],
        "pr": [_short(recalls), _short(best[np.minimum(first, len(best) - 1)])],
        "histogram": {"low": low, "high": high, "bars": [_short(c / max(c.max(), 1)) for c in counts]},
    }


def _view(scene: Scene, is_poison: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """At most `POINTS` rows, every poison that fits among them, and their two coordinates."""
    rng = np.random.default_rng(0)
    poison, clean = np.flatnonzero(is_poison), np.flatnonzero(~is_poison)
    poison = rng.permutation(poison)[: POINTS // 2]
    shown = np.sort(np.concatenate([poison, rng.permutation(clean)[: POINTS - len(poison)]]))
    flat = figures.flat_view(np.asarray(scene.embeddings[shown]))
    low, span = flat.min(0), np.maximum(np.ptp(flat, axis=0), 1e-12)
    scaled = (flat - low) / span * 65535
    target = target_class(scene.pairs, scene.row.get("target"))
    kind = np.where(is_poison, 2, np.zeros(len(is_poison)) if target is None else target)
    packed = {"x": _packed(scaled[:, 0], np.uint16), "y": _packed(scaled[:, 1], np.uint16)}
    return shown, {**packed, "kind": _packed(kind[shown], np.uint8), "count": len(shown)}


def _nearest(image: np.ndarray, rows: list[int], size: int = 65_536) -> dict[str, list[tuple[int, float]]]:
    """The most similar other rows of each row, by cosine: for the page, no detector uses it."""
    blocks = (
        (begin, unit(np.asarray(image[begin : begin + size], np.float32))) for begin in range(0, len(image), size)
    )
    queries = unit(np.asarray(image[rows], np.float32))
    found = most_similar(queries, blocks, NEIGHBOURS, [np.array([row]) for row in rows])
    return {
        str(row): [(int(other), round(float(cosine), 3)) for other, cosine in zip(near, cosines, strict=True)]
        for row, (near, cosines) in zip(rows, found, strict=True)
    }


def _samples(scene: Scene, rows: list[int], is_poison: np.ndarray, images: dict[str, int]) -> dict[str, Any]:
    """Caption, id and truth of each row, and its place among the page's `images`."""
    pairs, samples = scene.pairs, {}
    for begin in range(0, len(rows), 256):
        part = rows[begin : begin + 256]
        for row, image in zip(part, pairs.images(np.asarray(part)), strict=True):
            samples[str(row)] = {
                "id": str(pairs.ids[row]),  # of up to 63 bits, which JavaScript's numbers do not hold
                "caption": str(pairs.captions[row]),
                "poison": bool(is_poison[row]),
                "image": images.setdefault(thumbnail(image), len(images)),
            }
    return samples


def thumbnail(image: np.ndarray) -> str:
    """(h, w, 3) uint8 -> a data URL. A picture that has to shrink is a JPEG, a small one a PNG, pixel by pixel."""
    from PIL import Image

    picture = Image.fromarray(image)
    small = max(picture.size) <= THUMBNAIL
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG") if small else picture.save(buffer, "JPEG", quality=85)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _packed(values: np.ndarray, kind: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(np.rint(values), kind).tobytes()).decode()


def _short(values: np.ndarray) -> list[float]:
    return [round(float(value), 5) for value in values]


def plain(value: Any) -> Any:
    """JSON has no NaN and no numpy; both become plain values."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
