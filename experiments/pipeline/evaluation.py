"""Every cell of a run, computed or taken from the store."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from attacks import PoisonedPairs
from detect import Embeddings
from experiments.pipeline.experiment import ScoreSpec
from experiments.pipeline.rows import RunMetadata
from experiments.pipeline.runner import Runner
from experiments.pipeline.sweep import CellCounts
from experiments.runtime import distributed, refusals, stopping
from experiments.runtime.atomic import write_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One attack x one detector x one seed: a row of the results table, and the scores behind it."""

    row: dict[str, Any]
    scores: np.ndarray | None  # (n,), None for a failed cell
    reused: bool = False  # it had been in the store


@dataclass(frozen=True)
class RunResult:
    """Everything a report is made of."""

    cells: list[Cell]
    pairs: PoisonedPairs
    truth: np.ndarray  # (n,) bool: the samples that should be found
    embeddings: Embeddings
    metadata: Mapping[str, Any]
    history: list[dict[str, Any]]  # one dictionary of measures per epoch of training

    @property
    def tally(self) -> CellCounts:
        failed = sum(cell.row["status"] == "failed" for cell in self.cells)
        reused = sum(cell.reused for cell in self.cells)
        return CellCounts(len(self.cells) - failed - reused, reused, failed)


def run(runner: Runner) -> RunResult:
    """Compute every stage of an experiment, or take it from the store."""
    experiment = runner.experiment
    if not experiment.config.target_new:
        runner.value("known_targets")
    # A failure of what all cells share ends the run; that of one detector is a failed cell.
    pairs, truth, embeddings = (runner.value(name) for name in ("pairs", "truth", "embeddings"))
    metadata = RunMetadata.of(experiment.labels, runner.value("measures"), truth)
    _warn_of_collapse(runner, metadata)
    cells = [_cell(runner, spec, metadata) for spec in experiment.specs()]
    failed = sum(cell.row["status"] == "failed" for cell in cells)
    log.info("%-10s %d cells, %d failed", "evaluate", len(cells), failed)
    return RunResult(cells, pairs, truth, embeddings, metadata.shared, runner.value("trained").history)


def _warn_of_collapse(runner: Runner, metadata: RunMetadata) -> None:
    """Warn where the poisons of a scope are so many that they can be each other's k nearest neighbours."""
    seen = set()
    for spec in runner.experiment.specs():
        detector = runner.experiment.detector(spec)
        row = metadata.row(spec, detector)
        if spec.detector in seen or not detector.collapses_beyond_k or row["poisons_per_scope"] <= row["k"]:
            continue
        seen.add(spec.detector)
        log.warning(
            "%s: about %.0f poisons in a scope of %d, and k = %d: scores collapse once poisons are each "
            "other's neighbours; raise k or use a smaller scope",
            spec.detector,
            row["poisons_per_scope"],
            row["scope_size"],
            row["k"],
        )


def _cell(runner: Runner, spec: ScoreSpec, metadata: RunMetadata) -> Cell:
    """The cell's row and scores; a failure becomes a visible hole, with its error."""
    import pandas as pd

    hole = runner.store.path(runner.recipe("cell", {"spec": spec})).with_suffix(".failed.json")
    try:
        entry = runner.entry("cell", spec=spec)
    except Exception as error:
        if stopping.reason(error):  # such as a full disk: every other detector would fail as well
            raise
        refusals.report(spec.detector, error)
        row = metadata.row(spec, runner.experiment.detector(spec)) | {"status": "failed"}
        row["error"] = f"{type(error).__name__}: {error}"
        if distributed.is_main():
            hole.parent.mkdir(parents=True, exist_ok=True)
            write_whole(hole, json.dumps(row, indent=1))
        return Cell(row, None)
    if distributed.is_main() and hole.exists():
        hole.unlink()
    scores = pd.read_parquet(entry.path / "scores.parquet", columns=["score"])["score"].to_numpy()
    return Cell(json.loads((entry.path / "cell.json").read_text()), scores, entry.reused)
