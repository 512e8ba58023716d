"""What a scan finds: a table of its samples, those without a score, and metrics where the poisons are known."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detect import Scores, evaluate
from experiments.data.provenance import COLUMNS, origins
from experiments.data.shard_pairs import is_remote, local_path
from experiments.data.tables import Files
from experiments.data.unscored import SCORED, Unscored
from experiments.pipeline.runner import Runner
from experiments.tasks.groups import Group
from experiments.tasks.samples import Samples

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ScanResult:
    """Everything a scan's report is made of.

    table: a row per scored sample: id, `provenance.COLUMNS`, caption, a column per detector, score, p, rank (1 is
        the most suspicious), group (1 is the strongest, 0: none); `score` orders them, `p` is the share of all
        samples that score at least as high.
    unscored: a row per sample that the reader left out: id, `provenance.COLUMNS`, status (why).
    truth: (n,) bool where a plan or a planted natural backdoor is known.
    failed: detector -> its error.
    """

    table: pd.DataFrame
    unscored: pd.DataFrame
    detectors: list[str]
    ranked_by: list[str]
    samples: Samples
    groups: list[Group]
    truth: np.ndarray | None
    metrics: dict[str, dict[str, float]]
    failed: dict[str, str]
    metadata: dict[str, Any]

    @staticmethod
    def about(runners: list[Runner], samples: Samples, unscored: Unscored, truth: np.ndarray) -> dict[str, Any]:
        """What the report says of the whole scan, for `metadata`.  truth: (n,) bool, all False if it is unknown."""
        experiment = runners[0].experiment
        return {
            "data": experiment.labels["data"],
            "model": experiment.labels["model"],
            "seed": experiment.seed,
            "n": len(samples),
            "members": len(samples) + len(unscored.ids),
            "unscored": unscored.counts(),
            "lost": unscored.lost,
            "parts": len(runners),
            "truth": int(truth.sum()) if truth.any() else None,
            "captions": getattr(experiment.source, "has_captions", True),
        }

    @property
    def order(self) -> np.ndarray:
        """(n,) rows, the most suspicious first."""
        return np.argsort(self.table["rank"].to_numpy(), kind="stable")

    @property
    def all_samples(self) -> pd.DataFrame:
        """A row per sample of the data, by id, with its `status`; the unscored have no scores and no rank."""
        import pandas as pd

        whole = pd.concat([self.table.assign(status=SCORED), self.unscored])
        kinds = {"rank": "Int64", "group": "Int64", "known_clean": "boolean"}  # empty for the unscored
        whole = whole.astype({name: kind for name, kind in kinds.items() if name in whole})
        whole = whole.sort_values("id", kind="stable")
        return whole.reset_index(drop=True)


def write_scores(result: ScanResult, folder: Path) -> Path:
    """scores.parquet: a row per sample of the data, by id; `status` says why one has no scores."""
    file = folder / "scores.parquet"
    result.all_samples.to_parquet(file, index=False)
    return file


def write_sources(samples: Samples, folder: Path) -> Path:
    """scan.json: where the scan's embeddings and pictures lie, for `python -m analysis export`."""
    shards = [
        url if is_remote(url) else os.path.abspath(local_path(url))
        for source in samples.sources
        for url in getattr(source, "urls", ())
    ]
    files = [source.images for source in samples.sources if isinstance(source, Files)]
    content = {
        "embeddings": [os.path.abspath(found) for found in samples.folders],
        "shards": shards,
        "images": files[0].root if files else None,
        "follow_links": bool(files and files[0].follow_links),
    }
    file = folder / "scan.json"
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return file


def metrics_of(columns: dict[str, np.ndarray], ids: np.ndarray, truth: np.ndarray) -> dict[str, dict[str, float]]:
    """Column -> its metrics; none where there is nothing to be found, or nothing else."""
    metrics: dict[str, dict[str, float]] = {}
    if truth.all() or not truth.any():
        return metrics
    for name, values in columns.items():
        found = evaluate(Scores(ids, values), truth)
        metrics[name] = {key: getattr(found, key) for key in ("auroc", "auprc", "fpr95", "fpr100")}
        metrics[name] |= {f"recall_at_{round(100 * share)}pct": r for share, r in found.recall_at.items()}
    return metrics


def group_numbers(groups: Sequence[Group], n: int) -> np.ndarray:
    """(n,) int64 number of the strongest group that a row is in, from 1; 0: none."""
    numbers = np.zeros(n, np.int64)
    for number, group in reversed(list(enumerate(groups, start=1))):
        numbers[group.rows] = number
    return numbers


def where_from(
    runners: list[Runner], left_out: list[Unscored]
) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """`provenance.COLUMNS` of the scored samples, and of the unscored ones."""
    columns: tuple[dict[str, list[Any]], ...] = tuple({name: [] for name in COLUMNS} for _ in range(2))
    for runner, unscored in zip(runners, left_out, strict=True):
        scored = np.asarray(runner.value("pairs").ids)
        found = origins(runner.experiment.source, np.concatenate([scored, unscored.ids]))
        for name, values in found.items():
            columns[0][name] += values[: len(scored)]
            columns[1][name] += values[len(scored) :]
    return columns[0], columns[1]


def with_sizes(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with whole numbers as width and height, empty where they are not known."""
    return table.astype({"width": "Int32", "height": "Int32"})
