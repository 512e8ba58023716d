"""A scan's report: suspects.html, one self-contained file to look through, and summary.md."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from analysis.markdown import markdown_table, shortened
from analysis.pages.provenance import sections
from analysis.pages.rendering import PER_CHUNK, render, thumbnail
from analysis.style import detector_label
from experiments.data.unscored import unscored_lines

if TYPE_CHECKING:
    import pandas as pd

WITH_NEIGHBOURS = 60  # of the suspects the first ones come with their nearest neighbours
NEIGHBOURS = 6
MEMBERS = 24  # of a group
GROUPS = 20
OF_GROUP = (
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


class Group(Protocol):
    """Samples that belong together; `experiments.tasks.groups` says what its measures are."""

    @property
    def rows(self) -> np.ndarray: ...
    @property
    def caption(self) -> str: ...
    @property
    def similarity(self) -> float: ...
    @property
    def pixels(self) -> float: ...
    @property
    def shared(self) -> float: ...
    @property
    def concentration(self) -> float: ...
    @property
    def isolation(self) -> float: ...
    @property
    def surprise(self) -> float: ...
    @property
    def strength(self) -> float: ...
    @property
    def alarming(self) -> bool: ...
    @property
    def size(self) -> int: ...


class Samples(Protocol):
    """The scanned samples, by row."""

    def images(self, rows: np.ndarray) -> np.ndarray: ...
    def nearest(self, rows: Sequence[int], k: int) -> dict[int, list[tuple[int, float]]]: ...


class ScanResult(Protocol):
    """What the page shows; `experiments.tasks.scan_result` has one, and says what its parts are."""

    @property
    def table(self) -> pd.DataFrame: ...
    @property
    def order(self) -> np.ndarray: ...
    @property
    def detectors(self) -> list[str]: ...
    @property
    def ranked_by(self) -> list[str]: ...
    @property
    def samples(self) -> Samples: ...
    @property
    def groups(self) -> Sequence[Group]: ...
    @property
    def truth(self) -> np.ndarray | None: ...
    @property
    def metrics(self) -> dict[str, dict[str, float]]: ...
    @property
    def failed(self) -> dict[str, str]: ...
    @property
    def metadata(self) -> dict[str, Any]: ...


def write(
    result: ScanResult,
    path: Path,
    gallery: int = 120,
    cleaned: Mapping[str, Any] | None = None,
    histogram: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page: suspects by rank and by group, with scores and nearest neighbours.

    cleaned: what became of the samples, counted by `experiments.tasks.cleaned_copy.tally`.
    histogram: of all scores: low, high, counts; None: of those in the result, which holds all samples then.
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
    pictures, samples = _samples(result, wanted, len(order))
    data = {
        "scan": identity(result.table),
        "metadata": result.metadata,
        "cleaned": cleaned,
        "ranked_by": [label(name) for name in result.ranked_by],
        "detectors": [{"name": name, "label": label(name)} for name in result.detectors],
        "order": order,
        "near": near,
        "samples": samples,
        "pictures_per_block": PER_CHUNK,
        "groups": [_group(group, rows) for group, rows in zip(groups, members, strict=True)],
        "members": _members(result.table, groups, set(wanted)),
        "histogram": _histogram(result) if histogram is None else histogram,
        "metrics": result.metrics,
        "failed": result.failed,
    }
    render(
        "suspects.html",
        data,
        path,
        ("page.css", "suspects.css"),
        ("marks.js", "suspects.js", "origins.js"),
        pictures=pictures,
    )
    return path


def identity(table: pd.DataFrame) -> str:
    """Digest of the scanned samples (id, shard, key, caption), which the page keeps decisions under.

    A scan of the same samples with other detectors or another model has the same, and so shows the decisions.
    """
    digest = hashlib.sha256(table["id"].to_numpy("<i8").tobytes())
    for name in ("shard", "key", "caption"):
        for text in table[name]:
            digest.update(str(text or "").encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:32]


def label(column: str) -> str:
    """`slof_raw` -> SLOF (raw)."""
    name = column.removesuffix("_raw")
    return detector_label(name) + (" (raw)" if name != column else "")


def _samples(result: ScanResult, rows: list[int], most: int) -> tuple[list[str], dict[str, Any]]:
    """Pictures as data URLs, and what the page shows of each row; `high`: the detectors whose `most` highest scores
    hold its score.
    """
    table = result.table
    named = [name for name in ("key", "shard", "url", "domain", "caption", "rank", "group") if name in table]
    high = np.array([np.partition(table[name], -most)[-most] for name in result.detectors])
    samples: dict[str, Any] = {}
    pictures: list[str] = []
    for start in range(0, len(rows), 256):
        part = rows[start : start + 256]
        records = table.iloc[part].to_dict("records")
        for row, record, image in zip(part, records, result.samples.images(np.asarray(part)), strict=True):
            scores = [record[name] for name in result.detectors]
            samples[str(row)] = {
                "id": str(record["id"]),  # of up to 63 bits, which JavaScript's numbers do not hold
                **{name: record[name] for name in named},
                "score": float(f"{record['score']:.4g}"),
                "p": float(f"{record['p']:.2g}"),
                "scores": [float(f"{score:.4g}") for score in scores],
                "high": [
                    place for place, (score, low) in enumerate(zip(scores, high, strict=True)) if score >= low
                ],
                "truth": None if result.truth is None else bool(result.truth[row]),
                "picture": len(pictures),
            }
            pictures.append(thumbnail(image))
    return pictures, samples


def _group(group: Group, rows: np.ndarray) -> dict[str, Any]:
    return {name: getattr(group, name) for name in OF_GROUP} | {"rows": rows, "members": group.rows}


def _members(table: pd.DataFrame, groups: Sequence[Group], shown: set[int]) -> dict[str, list[str]]:
    """Row -> id, shard and key of the groups' samples that are not shown, so that they can be decided about too."""
    rows = sorted({int(row) for group in groups for row in group.rows} - shown)
    part = table.iloc[rows][["id", "shard", "key"]]
    return {
        str(row): ["" if text is None else str(text) for text in names]
        for row, names in zip(rows, part.itertuples(index=False), strict=True)
    }


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
            "n": result.metadata["n"],
            "n_poison": result.metadata["truth"],
            **result.metrics.get(name, {}),
        }
        for name in [*result.detectors, "score"]
    ]


def summary(result: ScanResult) -> str:
    """summary.md, which is also what the run prints."""
    metadata = result.metadata
    lines = [
        "# Scan",
        "",
        f"{metadata['n']:,} samples ({metadata['data']}, model {metadata['model']}), ranked by "
        + (" + ".join(label(name) for name in result.ranked_by))
        + (" (mean rank)." if len(result.ranked_by) > 1 else "."),
        "",
        "scores.parquet: every sample with its scores; suspects.html: decide there, then run the same settings "
        "with task=clean task.decisions=decisions.csv.",
        *unscored_lines(metadata["unscored"], metadata["lost"], "not scanned"),
        "",
    ]
    lines += [f"**{label(name)} failed:** {error}\n" for name, error in result.failed.items()]
    lines += ["## Groups that a model could learn", "", *group_lines(result.groups), ""]
    lines += ["## Most suspicious samples", "", *suspect_lines(result), *sections(metadata)]
    if result.metrics:
        lines += ["", "## Compared with the known labels", "", f"{metadata['truth']:,} samples to be found.", ""]
        lines += _metric_lines(result.metrics)
    return "\n".join(lines) + "\n"


def suspect_lines(result: ScanResult) -> list[str]:
    """A table of the samples that rank highest."""
    rows = []
    for record in result.table.iloc[result.order[:20]].to_dict("records"):
        where = " ".join(str(record[name]) for name in ("shard", "key") if record[name]) or "–"
        score = f"{record['score']:.4g}"
        rows.append([record["rank"], record["id"], shortened(where), score, shortened(record["caption"])])
    return markdown_table(["rank", "id", "where", "score", "caption"], rows)


def _metric_lines(metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    keys = ("auroc", "auprc", "fpr95", "fpr100", *(f"recall_at_{share}pct" for share in (1, 5, 10)))
    heads = ["scores", "AUROC", "AUPRC", "FPR at 95 % TPR", "at 100 %", "recall at 1 %", "5 %", "10 %"]
    rows = []
    for name, row in metrics.items():
        title = "the ranking" if name == "score" else label(name)
        rows.append([title, *(f"{row[key]:.3f}" for key in keys)])
    return markdown_table(heads, rows)


def group_lines(groups: Sequence[Group]) -> list[str]:
    """A table of the alarming groups, or how many there are of others."""
    alarming = [group for group in groups if group.alarming]
    if not alarming:
        shown = min(len(groups), GROUPS)
        text = "None." + (f" suspects.html shows {shown} of {len(groups)} weaker groups." if groups else "")
        return [text.strip()]
    heads = ["strength", "images", "leading caption", "similarity", "pixels alike", "captions alike", "isolation"]
    rows = []
    for group in alarming[:20]:
        numbers = (group.similarity, group.pixels, group.concentration, group.isolation)
        shown_numbers = [f"{number:.2f}" for number in numbers]
        rows.append([f"{group.strength:.2f}", group.size, shortened(group.caption), *shown_numbers])
    return markdown_table(heads, rows)
