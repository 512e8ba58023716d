"""A scan's report: suspects.html, one self-contained file to look through, and summary.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.pages.results import render, thumbnail
from analysis.style import detector_label
from experiments.data.unscored import unscored_lines
from experiments.runtime.safe_text import printable

if TYPE_CHECKING:
    from experiments.tasks.groups import Group
    from experiments.tasks.scan_result import ScanResult

WITH_NEIGHBOURS = 60  # of the suspects the first ones come with their nearest neighbours
NEIGHBOURS = 6
MEMBERS = 24  # of a group
GROUPS = 20


def write(result: ScanResult, path: Path, gallery: int = 120, cleaned: Mapping[str, Any] | None = None) -> Path:
    """Write the page: suspects by rank and by group, with scores and nearest neighbours.

    cleaned: what became of the samples, counted by `experiments.tasks.cleaned_shards.tally`.
    """
    order = result.order[:gallery]
    groups = result.groups[:GROUPS]
    members = [group.rows[:MEMBERS] for group in groups]
    asked = [int(row) for row in order[:WITH_NEIGHBOURS]]
    asked += [int(rows[0]) for rows in members if int(rows[0]) not in asked]
    near = result.samples.nearest(asked, NEIGHBOURS)
    wanted = sorted(
        {int(row) for rows in (order, *members) for row in rows}
        | {row for found in near.values() for row, _ in found}
    )
    data = {
        "facts": result.facts,
        "cleaned": cleaned,
        "ranked_by": [label(name) for name in result.ranked_by],
        "detectors": [{"name": name, "label": label(name)} for name in result.detectors],
        "order": order,
        "near": near,
        "samples": _samples(result, wanted),
        "groups": [_group(group, rows) for group, rows in zip(groups, members, strict=True)],
        "histogram": _histogram(result),
        "metrics": result.metrics,
        "failed": result.failed,
    }
    render("suspects.html", data, path)
    return path


def label(column: str) -> str:
    """`slof_raw` -> SLOF (raw)."""
    name = column.removesuffix("_raw")
    return detector_label(name) + (" (raw)" if name != column else "")


def _samples(result: ScanResult, rows: list[int]) -> dict[str, Any]:
    table = result.table
    samples: dict[str, Any] = {}
    for begin in range(0, len(rows), 256):
        part = rows[begin : begin + 256]
        records = table.iloc[part].to_dict("records")
        for row, record, image in zip(part, records, result.samples.images(np.asarray(part)), strict=True):
            samples[str(row)] = {
                "id": str(record["id"]),  # of up to 63 bits, which JavaScript's numbers do not hold
                **{name: record[name] for name in ("key", "shard", "url", "caption", "rank")},
                "score": float(f"{record['score']:.4g}"),
                "p": float(f"{record['p']:.2g}"),
                "scores": [float(f"{record[name]:.4g}") for name in result.detectors],
                "truth": None if result.truth is None else bool(result.truth[row]),
                "image": thumbnail(image),
            }
    return samples


def _group(group: Group, rows: np.ndarray) -> dict[str, Any]:
    names = (
        "caption",
        "size",
        "similarity",
        "pixels",
        "shared",
        "concentration",
        "isolation",
        "surprise",
        "strength",
        "alarming",
    )
    return {name: getattr(group, name) for name in names} | {"rows": rows}


def _histogram(result: ScanResult) -> dict[str, Any]:
    """Counts of the score in 60 bins; what lies beyond them is counted in the last ones."""
    score = result.table["score"].to_numpy()
    low, high = float(np.quantile(score, 0.001)), float(np.quantile(score, 0.9995))
    high = high if high > low else low + 1
    counts, _ = np.histogram(np.clip(score, low, high), 60, (low, high))
    return {"low": low, "high": high, "counts": counts}


def result_rows(result: ScanResult) -> list[dict[str, Any]]:
    """The rows of results.csv: a row per column of scores, with metrics where there is a truth."""
    return [
        {
            "detector": name,
            "n": result.facts["n"],
            "n_poison": result.facts["truth"],
            **result.metrics.get(name, {}),
        }
        for name in [*result.detectors, "score"]
    ]


def summary(result: ScanResult) -> str:
    """summary.md, which is also what the run prints."""
    facts = result.facts
    lines = [
        "# Scan",
        "",
        f"{facts['n']:,} samples ({facts['data']}, model {facts['model']}), ranked by "
        + (" + ".join(label(name) for name in result.ranked_by))
        + (" (mean rank)." if len(result.ranked_by) > 1 else "."),
        "",
        "scores.parquet: every sample with its scores; suspects.html: the gallery.",
        *unscored_lines(facts["unscored"], facts["lost"], "not scanned"),
        "",
    ]
    lines += [f"**{label(name)} failed:** {error}\n" for name, error in result.failed.items()]
    lines += ["## Groups that a model could learn", "", *_group_lines(result.groups), ""]
    lines += ["## Most suspicious samples", "", "| rank | id | where | score | caption |", "|---|---|---|---|---|"]
    for record in result.table.iloc[result.order[:20]].to_dict("records"):
        where = " ".join(str(record[name]) for name in ("shard", "key") if record[name]) or "–"
        lines.append(
            f"| {record['rank']} | {record['id']} | {_cell(where)} | {record['score']:.4g} | "
            f"{_cell(record['caption'])} |"
        )
    if result.metrics:
        lines += [
            "",
            "## Against the truth at hand",
            "",
            f"{facts['truth']:,} samples to be found.",
            "",
            "| scores | AUROC | AUPRC | FPR at 95 % TPR | at 100 % | recall at 1 % | 5 % | 10 % |",
            "|---" * 8 + "|",
        ]
        for name, row in result.metrics.items():
            recalls = [f"recall_at_{share}pct" for share in (1, 5, 10)]
            shown = [row[key] for key in ("auroc", "auprc", "fpr95", "fpr100", *recalls)]
            title = "the ranking" if name == "score" else label(name)
            lines.append(f"| {title} | " + " | ".join(f"{value:.3f}" for value in shown) + " |")
    return "\n".join(lines) + "\n"


def _group_lines(groups: list[Group]) -> list[str]:
    alarming = [group for group in groups if group.alarming]
    if not alarming:
        shown = min(len(groups), GROUPS)
        text = "None." + (f" suspects.html shows {shown} of {len(groups)} weaker groups." if groups else "")
        return [text.strip()]
    lines = [
        "| strength | images | leading caption | similarity | pixels alike | captions alike | isolation |",
        "|---|---|---|---|---|---|---|",
    ]
    for group in alarming[:20]:
        numbers = (group.similarity, group.pixels, group.concentration, group.isolation)
        lines.append(
            f"| {group.strength:.2f} | {group.size} | {_cell(group.caption)} | "
            + " | ".join(f"{number:.2f}" for number in numbers)
            + " |"
        )
    return lines


def _cell(text: str, width: int = 90) -> str:
    flat = printable(" ".join(text.replace("|", "\\|").split()))
    return flat if len(flat) <= width else flat[: width - 1] + "…"
