"""One scene of the report: the curves of its cells, the 2-D view, the galleries, and the images that they show."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from analysis import embedding_figure
from analysis.aggregate import case_label
from analysis.pages.rendering import thumbnail
from analysis.report import leading_cell, target_class
from analysis.stored_cells import Scene, StoredCell, case
from analysis.style import detector_order
from analysis.tables import cell_label, is_control, is_raw, warnings
from detect.embeddings import unit
from detect.metrics import rank
from detect.search.cosine import most_similar

SUSPECTS = 24  # in a gallery
WITH_NEIGHBOURS = 12  # of these the first ones come with their nearest neighbours
NEIGHBOURS = 5
POINTS = 4000  # in the 2-D view


Curve = tuple[list[float], list[float]]  # across, up


def scene_name(scene: Scene) -> str:
    row = scene.row
    parts = [case_label(case(row)), str(row.get("model") or ""), f"seed {row.get('seed')}"]
    return ", ".join(part for part in parts if part)


def side(cell: StoredCell) -> str:
    normalise = cell.row.get("normalise")
    return "either" if normalise is None else "raw" if is_raw(normalise) else "normalised"


def scene_data(scene: Scene, images: dict[str, int]) -> dict[str, Any]:
    """Curves of every cell, the 2-D view, galleries, and the images that they show."""
    is_poison = scene.cells[0].is_poison
    ordered = sorted(scene.cells, key=lambda cell: (detector_order(str(cell.row["detector"])), side(cell)))
    rows = [cell.row for cell in ordered]
    lead = leading_cell(scene.cells)
    shown, view = _view(scene, is_poison)
    galleries: dict[str, list[int]] = {}
    lines = []
    for place, cell in enumerate(ordered):
        scores = np.asarray(cell.scores)
        order = np.argsort(-scores, kind="stable")
        ranks = 255 * (len(scores) - rank(scores)) / max(len(scores) - 1, 1)  # 255: the most suspicious
        galleries[str(place)] = order[:SUSPECTS].tolist()
        lines.append(
            {
                "name": cell.row["detector"],
                "label": cell_label(cell.row, rows),
                "side": side(cell),
                "control": is_control(cell.row),
                "auroc": cell.row.get("auroc"),
                "auprc": cell.row.get("auprc"),
                "scores": [float(f"{value:.5g}") for value in scores[order[:SUSPECTS]]],
                "ranks": _packed(ranks[shown], np.uint8),
                **curves(scores, is_poison),
            }
        )
    row = scene.row
    near = _nearest(scene.embeddings, sorted({r for g in galleries.values() for r in g[:WITH_NEIGHBOURS]}))
    wanted = sorted({r for g in galleries.values() for r in g} | {r for rows in near.values() for r, _ in rows})
    return {
        "name": scene_name(scene),
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


def curves(scores: np.ndarray, is_poison: np.ndarray) -> dict[str, Any]:
    """ROC on 120 false positive rates, precision on 80 recalls, and both densities."""
    roc, precision = (
        _both_curves(scores, is_poison) if is_poison.any() and not is_poison.all() else ([[], []], [[], []])
    )
    return {"roc": roc, "pr": precision, "histogram": _histogram(scores, is_poison)}


def _both_curves(scores: np.ndarray, is_poison: np.ndarray) -> tuple[Curve, Curve]:
    """ROC: false and true positive rates.  Precision at a recall: the best at this recall or a higher one."""
    from sklearn.metrics import precision_recall_curve, roc_curve

    total, clean = int(is_poison.sum()), int((~is_poison).sum())
    false, true, _ = roc_curve(is_poison, scores, drop_intermediate=False)
    at = np.unique(np.concatenate([np.geomspace(1 / clean, 1, 80), np.linspace(0, 1, 40)]))
    last = np.flatnonzero(np.diff(false, append=2))  # the highest point above each false positive rate
    roc = np.interp(at, false[last], true[last])  # straight between thresholds, as tied scores ask for
    precision, recall, _ = precision_recall_curve(is_poison, scores)
    recalls = np.linspace(1 / total, 1, min(80, total))
    best = np.maximum.accumulate(precision[:-1])[::-1]  # without the point at recall 0, which is no threshold
    first = np.searchsorted(recall[-2::-1], recalls - 1e-9)
    return (_short(at), _short(roc)), (_short(recalls), _short(best[np.minimum(first, len(best) - 1)]))


def _histogram(scores: np.ndarray, is_poison: np.ndarray) -> dict[str, Any]:
    """Counts of the clean and of the poisoned samples, each as a share of its largest."""
    parts = [part for part in (scores[~is_poison], scores[is_poison]) if len(part)]
    ends_at = np.concatenate([np.quantile(part, (0.002, 0.998)) for part in parts])
    low, high = float(ends_at.min()), float(ends_at.max())
    high = high if high > low else low + 1
    counts = []
    for part in parts:
        bars = int(np.clip(2 * np.sqrt(len(part)), 12, 40))  # few samples, wide bars
        counts.append(np.histogram(np.clip(part, low, high), bars, (low, high))[0])
    return {"low": low, "high": high, "bars": [_short(c / max(c.max(), 1)) for c in counts]}


def _view(scene: Scene, is_poison: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """At most `POINTS` rows, every poison that fits among them, and their two coordinates."""
    rng = np.random.default_rng(0)
    poison, clean = np.flatnonzero(is_poison), np.flatnonzero(~is_poison)
    poison = rng.permutation(poison)[: POINTS // 2]
    shown = np.sort(np.concatenate([poison, rng.permutation(clean)[: POINTS - len(poison)]]))
    flat = embedding_figure.flat_view(np.asarray(scene.embeddings[shown]))
    low, span = flat.min(0), np.maximum(np.ptp(flat, axis=0), 1e-12)
    scaled = (flat - low) / span * 65535
    target = target_class(scene.pairs, scene.row.get("target"))
    kind = np.where(is_poison, 2, np.zeros(len(is_poison)) if target is None else target)
    packed = {"x": _packed(scaled[:, 0], np.uint16), "y": _packed(scaled[:, 1], np.uint16)}
    return shown, {**packed, "kind": _packed(kind[shown], np.uint8), "count": len(shown)}


def _nearest(image: np.ndarray, rows: list[int]) -> dict[str, list[tuple[int, float]]]:
    """For each row its most similar other rows, by cosine: only for the eye, no detector uses it."""
    starts = range(0, len(image), 65536)
    blocks = ((start, unit(np.asarray(image[start : start + 65536], np.float32))) for start in starts)
    queries = unit(np.asarray(image[rows], np.float32))
    found = most_similar(queries, blocks, NEIGHBOURS, [np.array([row]) for row in rows])
    return {
        str(row): [(int(other), round(float(cosine), 3)) for other, cosine in zip(near, cosines, strict=True)]
        for row, (near, cosines) in zip(rows, found, strict=True)
    }


def _samples(scene: Scene, rows: list[int], is_poison: np.ndarray, images: dict[str, int]) -> dict[str, Any]:
    """Caption, id and truth of each row, and its place among the page's `images`."""
    pairs, samples = scene.pairs, {}
    for start in range(0, len(rows), 256):
        part = rows[start : start + 256]
        for row, image in zip(part, pairs.images(np.asarray(part)), strict=True):
            samples[str(row)] = {
                "id": str(pairs.ids[row]),  # of up to 63 bits, which JavaScript's numbers do not hold
                "caption": str(pairs.captions[row]),
                "poison": bool(is_poison[row]),
                "image": images.setdefault(thumbnail(image), len(images)),
            }
    return samples


def _packed(values: np.ndarray, kind: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(np.rint(values), kind).tobytes()).decode()


def _short(values: np.ndarray) -> list[float]:
    return [round(float(value), 5) for value in values]
