"""`task=clean_and_retrain`: does removing the suspects make the next model safe?

Detect on the model that saw the poison, remove the most suspicious, train again on what is left, and compare with
training on clean data and with removing as many at random.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from experiments.pipeline.study import Study
from experiments.runtime import distributed
from experiments.tasks.scan import Scan

log = logging.getLogger(__name__)

COLUMNS = {
    "trained_on": "trained on", "removed": "removed", "poisons_left": "poisons left", "asr": "ASR",
    "zero_shot_top1": "zero-shot",
}  # fmt: skip


@dataclass(frozen=True)
class Retrained:
    """rows: one per training.  columns: of the summary, key of a row -> heading."""

    rows: list[dict[str, Any]]
    title: str = "Clean and retrain"
    columns: Mapping[str, str] = field(default_factory=lambda: COLUMNS)

    def write(self, folder: Path) -> tuple[str, Sequence[Mapping[str, Any]]]:
        """summary.md; what to print, and the rows of results.csv."""
        lines = [f"# {self.title}", "", " | ".join(["", *self.columns.values(), ""]).strip(),
                 "|---" * len(self.columns) + "|"]  # fmt: skip
        for row in self.rows:
            lines.append("| " + " | ".join(_shown(row.get(name)) for name in self.columns) + " |")
        text = "\n".join(lines) + "\n"
        (folder / "summary.md").write_text(text, encoding="utf-8")
        return text, self.rows


@dataclass(frozen=True)
class CleanAndRetrain(Scan):
    """shares: of the samples, removed by the scan's ranking.  random_shares: removed at random, to compare.
    groups: also remove nothing but the alarming groups.
    """

    shares: Sequence[float] = (0.01, 0.05, 0.1)
    random_shares: Sequence[float] = (0.1,)
    groups: bool = True

    task: ClassVar[str] = "clean_and_retrain"

    def __post_init__(self) -> None:
        super().__post_init__()
        for share in (*self.shares, *self.random_shares):
            if not 0 < share < 1:
                raise ValueError(f"task.shares and task.random_shares must lie in (0, 1), got {share}")

    def check(self, study: Study) -> None:
        """Refuse, before any work, what has nothing to retrain."""
        super().check(study)
        if not study.model_spec.trains:
            raise ValueError(f"task={self.task} trains the model anew, which this model configuration does not")
        if self.shards_per_part is not None:
            raise ValueError(f"task={self.task} works on the whole data, not with task.shards_per_part")

    def run(self, study: Study) -> Retrained | None:
        rows = [self.row(study, "poisoned data", study.truth), self.clean_row(study)]
        order, groups = self.suspects(study)
        if self.groups and groups:
            rows.append(self.row_without(study, "without alarming groups", np.concatenate(groups)))
        shuffled = np.random.default_rng([study.seed, 2]).permutation(len(order))
        ways = [("by the ranking", order, self.shares), ("at random", shuffled, self.random_shares)]
        for way, rows_in_order, shares in ways:
            for share in shares:
                name = f"{100 * share:g} % less, {way}"
                rows.append(self.row_without(study, name, rows_in_order[: round(share * len(order))]))
        return Retrained(rows) if distributed.is_main() else None

    def suspects(self, study: Study) -> tuple[np.ndarray, list[np.ndarray]]:
        """(n,) rows, the most suspicious first; those of each alarming group."""
        result = self.scan(study)
        found = (result.order, [group.rows for group in result.groups if group.alarming]) if result else None
        order, groups = distributed.broadcast(found)
        return order, groups

    def row_without(self, study: Study, name: str, removed: np.ndarray) -> dict[str, Any]:
        """The row of a training without the samples in the rows `removed`."""
        kept = np.ones(len(study.truth), bool)
        kept[removed] = False
        return self.row(
            Study(study.config, np.asarray(study.pairs.ids)[kept]), name, study.truth & kept, len(removed)
        )

    def clean_row(self, study: Study) -> dict[str, Any]:
        """The row of a training on the data as they were before the attack."""
        config = copy.deepcopy(study.config)
        config.train_on = "clean"
        return self.row(Study(config), "clean data", np.zeros(len(study.truth), bool))

    @staticmethod
    def row(study: Study, name: str, poison: np.ndarray, removed: int = 0) -> dict[str, Any]:
        """Train, or take from the store, and measure.  poison: (n,) bool, the poisons that are trained on."""
        log.info("training on %s", name)
        measures = json.loads((study.examine_entry.path / "measures.json").read_text())
        row = {
            "attack": study.attack.name, "seed": study.seed, "trained_on": name, "removed": removed,
            "poisons_left": int(poison.sum()), **measures,
        }  # fmt: skip
        log.info("%s: %d poisons left, ASR %s, zero-shot %s", name, row["poisons_left"], row.get("asr"),
                 row.get("zero_shot_top1"))  # fmt: skip
        return row


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
