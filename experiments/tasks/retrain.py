"""`task=clean_and_retrain`: does removing the suspects make the next model safe?

Detect on the model that saw the poison, remove the most suspicious, train again on what is left, and compare with
training on clean data and with removing as many at random.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis.markdown import markdown_table
from experiments.pipeline.experiment import Experiment
from experiments.pipeline.runner import Runner
from experiments.runtime import distributed
from experiments.tasks.scan import Scan

log = logging.getLogger(__name__)

COLUMNS = {
    "trained_on": "trained on",
    "removed": "removed",
    "poisons_left": "poisons left",
    "asr": "ASR",
    "zero_shot_top1": "zero-shot",
}


@dataclass(frozen=True)
class Retrained:
    """rows: one per training.  columns: of the summary, key of a row -> heading."""

    rows: list[dict[str, Any]]
    title: str = "Clean and retrain"
    columns: Mapping[str, str] = field(default_factory=lambda: COLUMNS)

    def write(self, folder: Path) -> tuple[str, Sequence[Mapping[str, Any]]]:
        """summary.md; what to print, and the rows of results.csv."""
        rows = [[_shown(row.get(name)) for name in self.columns] for row in self.rows]
        text = "\n".join([f"# {self.title}", "", *markdown_table(list(self.columns.values()), rows)]) + "\n"
        (folder / "summary.md").write_text(text, encoding="utf-8")
        return text, self.rows


@dataclass(frozen=True)
class Suspects:
    """The samples to remove before a training, as a scan finds them.

    rank_by, holdout: of the scan (`experiments.tasks.scan.Scan`).
    shares: of the samples, each removed by the ranking before a training of its own.
    """

    rank_by: str
    holdout: float
    shares: Sequence[float]

    @property
    def scan(self) -> Scan:
        return Scan(rank_by=self.rank_by, holdout=self.holdout, duplicate_cosine=None)

    def check(self, experiment: Experiment, task: str) -> None:
        """Refuse, before any work, what cannot be ranked or has nothing to retrain."""
        self.scan.check(experiment)
        if not experiment.model_spec.trains:
            raise ValueError(f"task={task} trains the model anew, which this model configuration does not")

    def found(self, runner: Runner) -> tuple[np.ndarray, list[np.ndarray]]:
        """(n,) rows, the most suspicious first; those of each alarming group."""
        result = self.scan.scan(runner)
        rows = (result.order, [group.rows for group in result.groups if group.alarming]) if result else None
        order, groups = distributed.broadcast(rows)
        return order, groups


def check_shares(name: str, shares: Sequence[float]) -> None:
    """ValueError unless all of them lie in (0, 1)."""
    for share in shares:
        if not 0 < share < 1:
            raise ValueError(f"task.{name} must lie in (0, 1), got {share}")


@dataclass(frozen=True)
class CleanAndRetrain:
    """rank_by, holdout: of the scan.  shares: of the samples, removed by its ranking.  random_shares: removed at
    random, to compare.  groups: also remove nothing but the alarming groups.
    """

    rank_by: str = "density"
    holdout: float = 0.0
    shares: Sequence[float] = (0.01, 0.05, 0.1)
    random_shares: Sequence[float] = (0.1,)
    groups: bool = True

    def __post_init__(self) -> None:
        check_shares("shares", self.shares)
        check_shares("random_shares", self.random_shares)
        _ = self.suspects.scan  # refuses its own settings

    @property
    def suspects(self) -> Suspects:
        return Suspects(self.rank_by, self.holdout, self.shares)

    def check(self, experiment: Experiment) -> None:
        """Refuse, before any work, what has nothing to retrain."""
        self.suspects.check(experiment, "clean_and_retrain")

    def run(self, runner: Runner) -> Retrained | None:
        rows = [training_row(runner, "poisoned data", runner.value("truth")), clean_row(runner)]
        order, groups = self.suspects.found(runner)
        if self.groups and groups:
            rows.append(row_without(runner, "without alarming groups", np.concatenate(groups)))
        shuffled = np.random.default_rng([runner.experiment.seed, 2]).permutation(len(order))
        ways = [("by the ranking", order, self.shares), ("at random", shuffled, self.random_shares)]
        for way, rows_in_order, shares in ways:
            for share in shares:
                name = f"{100 * share:g} % less, {way}"
                rows.append(row_without(runner, name, rows_in_order[: round(share * len(order))]))
        return Retrained(rows) if distributed.is_main() else None


def row_without(runner: Runner, name: str, removed: np.ndarray) -> dict[str, Any]:
    """The row of a training without the samples in the rows `removed`."""
    truth, ids = runner.value("truth"), np.asarray(runner.value("pairs").ids)
    kept = np.ones(len(truth), bool)
    kept[removed] = False
    return training_row(runner.replace(train_ids=ids[kept]), name, truth & kept, len(removed))


def clean_row(runner: Runner) -> dict[str, Any]:
    """The row of a training on the data as they were before the attack."""
    clean = runner.replace(runner.experiment.replace(train_on="clean"))
    return training_row(clean, "clean data", np.zeros(len(runner.value("truth")), bool))


def training_row(runner: Runner, name: str, poison: np.ndarray, removed: int = 0) -> dict[str, Any]:
    """Train, or take from the store, and measure.  poison: (n,) bool, the poisons that are trained on."""
    log.info("training on %s", name)
    row = {
        "attack": runner.experiment.attack.name,
        "seed": runner.experiment.seed,
        "trained_on": name,
        "removed": removed,
        "poisons_left": int(poison.sum()),
        **runner.value("measures"),
    }
    found = row["poisons_left"], row.get("asr"), row.get("zero_shot_top1")
    log.info("%s: %d poisons left, ASR %s, zero-shot %s", name, *found)
    return row


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
