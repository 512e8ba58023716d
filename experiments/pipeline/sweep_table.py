"""The table that a sweep ends with: a line for each job, with what it varied and the AUROC of each detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

LONGEST = 60  # jobs shown; the others are in results.csv


def sweep_table(jobs: Mapping[str, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """jobs: how each ended, by its name, with its `overrides`.  rows: those of results.csv, with their `job`.

    Of a detector the row on normalised embeddings, if there is one. None if no row has an AUROC.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    found: dict[str, dict[str, str]] = {}
    metadata: dict[str, Mapping[str, Any]] = {}
    for row in sorted(rows, key=lambda row: str(row.get("normalise")) == "False"):
        metadata.setdefault(row["job"], row)
        if row.get("detector"):
            found.setdefault(row["job"], {}).setdefault(row["detector"], _number(row.get("auroc")))
    detectors = list(dict.fromkeys(name for row in rows if (name := row.get("detector"))))
    if not detectors:
        return None
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        caption_justify="left",
        caption="AUROC on normalised embeddings" + f"; the first {LONGEST} jobs" * (len(jobs) > LONGEST),
    )
    table.add_column("job")
    for heading in ("ASR", *detectors):
        table.add_column(heading, justify="right")
    for name, said in _told_apart(jobs).items():
        if len(table.rows) == LONGEST:
            break
        if jobs[name]["status"] != "ok":
            table.add_row(said, "–", "failed")
            continue
        cells = found.get(name, {})
        table.add_row(said, _number(metadata.get(name, {}).get("asr")), *(cells.get(one, "–") for one in detectors))
    return table


def _told_apart(jobs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Name of a job -> those of its overrides that not all jobs share."""
    every = [set(job["overrides"]) for job in jobs.values()]
    shared = set.intersection(*every) if len(every) > 1 else set()
    return {
        name: " ".join(part for part in job["overrides"] if part not in shared) or name
        for name, job in jobs.items()
    }


def _number(value: Any) -> str:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return "–"
    return f"{number:.3f}" if number == number else "–"
