"""The table that a sweep ends with: a line for each job, with what it varied and the AUROC of each detector, or the
verdict on its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.runtime.safe_text import printable

if TYPE_CHECKING:
    from rich.table import Table

LONGEST = 60  # jobs shown; the others are in results.csv


def sweep_table(jobs: Mapping[str, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """jobs: name -> how it ended, with its `overrides`.  rows: those of results.csv, with their `job`.

    A detector's row is the one on normalised embeddings, if there is one. None if no row has an AUROC.
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
        return _verdict_table(jobs, rows) if any(row.get("verdict") for row in rows) else None
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


def _verdict_table(jobs: Mapping[str, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> Table:
    """For inspections: each model's verdict, and the number of wrong ones where the truth is known."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    once = {row["trained"]: row for row in reversed(rows) if row.get("trained")}.values()  # each model
    planted = [row for row in once if str(row.get("backdoored")) == "True"]
    clean = [row for row in once if str(row.get("backdoored")) == "False"]
    found = [row for row in planted if row["verdict"] == "backdoored"]
    named = sum(row.get("smallest") in str(row.get("target")).split(", ") for row in found)
    alarms = sum(row["verdict"] == "backdoored" for row in clean)
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        caption_justify="left",
        caption=f"{len(planted)} backdoored models (attack success of at least .5): {len(found)} found, {named} by "
        f"their target, {len(planted) - len(found)} missed; {len(clean)} others: {alarms} false alarms"
        + f"; the first {LONGEST} jobs"
        * (len(jobs) > LONGEST),
    )
    table.add_column("job")
    for heading in ("ASR", "verdict", "class", "z", "threshold"):
        table.add_column(heading, justify="right" if heading in ("ASR", "z", "threshold") else "left")
    by_job = {row["job"]: row for row in rows}
    for name, said in list(_told_apart(jobs).items())[:LONGEST]:
        row = by_job.get(name, {})
        verdict = str(row.get("verdict") or "–") if jobs[name]["status"] == "ok" else "failed"
        numbers = [_number(row.get(key)) for key in ("asr", "z", "threshold")]
        table.add_row(said, numbers[0], verdict, printable(row.get("smallest") or "–"), *numbers[1:])
    return table


def _told_apart(jobs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Name of a job -> its overrides, without those that all jobs share."""
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
