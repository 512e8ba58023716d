"""`task=scan`: rank the samples of a data set by suspicion, without labels.

A scan is the pipeline up to the scores. Large data are scanned in parts, groups of `shards_per_part` shards: each
part is a run of its own, with its own neighbourhood scopes and its own stages in the store. So the scores are
the same whoever computes which part, a killed scan goes on with the part it was in, and memory holds one part:

    python run.py -m task=scan task.shards_per_part=16 task.parts=8 task.part=0,1,2,3,4,5,6,7 ...   # one job each
    python run.py task=scan task.shards_per_part=16 ...                        # finds all parts, ranks, reports
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detect import Scores, evaluate
from detect.metrics import rank, rank_share
from experiments.data.provenance import origins
from experiments.data.shards import IDS_PER_SHARD, Shards
from experiments.pipeline.experiment import Experiment, ScoreSpec, uses_own_test_set
from experiments.pipeline.runner import Runner
from experiments.runtime import distributed
from experiments.tasks.groups import Group, Grouping
from experiments.tasks.samples import Samples

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

DENSITY_RATIO = ("slof", "lof", "dao")


@dataclass(frozen=True)
class ScanResult:
    """Everything a scan's report is made of.

    table: a row per sample: id, key, shard, caption, url, a column per detector, score, z, rank (1 is the most
        suspicious), group (1 is the strongest, 0: none); `score` orders them, `z` is how many robust standard
        deviations above the median they lie.
    truth: (n,) bool where a plan or a planted natural backdoor is at hand.
    failed: detector -> its error.
    """

    table: pd.DataFrame
    detectors: list[str]
    ranked_by: list[str]
    samples: Samples
    groups: list[Group]
    truth: np.ndarray | None
    metrics: dict[str, dict[str, float]]
    failed: dict[str, str]
    facts: dict[str, Any]

    @property
    def order(self) -> np.ndarray:
        """(n,) rows, the most suspicious first."""
        return np.argsort(self.table["rank"].to_numpy(), kind="stable")


@dataclass(frozen=True)
class Scan:
    """How to scan, and what to show.

    rank_by: "density", the mean of the ranks that SLOF, LOF and DAO give (those of them that were chosen), or one
        detector's column, such as `dao` or `slof_raw`.
    gallery: suspects shown.
    shards_per_part: scan so many shards at a time; None: everything at once.
    part, parts: of the parts, compute only every `parts`-th, from the `part`-th on, and report nothing.
    holdout: share of the data that its reader leaves out, for evaluation; a scan wants all.
    """

    rank_by: str = "density"
    gallery: int = 120
    grouping: Grouping = field(default_factory=Grouping)
    shards_per_part: int | None = None
    part: int | None = None
    parts: int = 1
    holdout: float = 0.0

    def __post_init__(self) -> None:
        if self.gallery < 1:
            raise ValueError(f"task.gallery must be at least 1, got {self.gallery}")
        if self.shards_per_part is not None and self.shards_per_part < 1:
            raise ValueError(f"task.shards_per_part must be at least 1, got {self.shards_per_part}")
        if self.part is not None and not 0 <= self.part < self.parts:
            raise ValueError(f"task.part must lie in 0..task.parts - 1 = {self.parts - 1}, got {self.part}")

    def check(self, experiment: Experiment) -> None:
        """Refuse, before any work, what cannot be ranked or split."""
        self.ranking(self.columns(experiment))
        if self.shards_per_part is not None:
            if not isinstance(experiment.source, Shards):
                raise ValueError("task.shards_per_part splits tar shards, so it needs data=webdataset")
            if experiment.model_spec.trains:
                raise ValueError("task.shards_per_part needs a trained model: see model=trained in docs/scan.md")
        elif self.part is not None:
            raise ValueError("task.part needs task.shards_per_part, which says what a part is")

    def run(self, runner: Runner) -> Any:
        """The task's result; None if this was only some of the parts, and on ranks above 0."""
        return self.scan(runner)

    def scan(self, runner: Runner) -> ScanResult | None:
        """Score, rank and group."""
        runners, shifts = self.split(runner)
        if self.part is not None:
            for number in range(self.part, len(runners), self.parts):
                log.info("part %d of %d", number, len(runners))
                self._scores(runners[number], {})
            return None
        failed: dict[str, str] = {}
        scored = []
        for number, part in enumerate(runners):
            if len(runners) > 1:
                log.info("part %d of %d", number, len(runners))
            scored.append(self._scores(part, failed))
        columns = {
            name: np.concatenate([scores[name] for scores in scored])
            for name in self.columns(runner.experiment)
            if name not in failed
        }
        if not distributed.is_main():
            return None
        return self._result(runners, shifts, columns, failed)

    def split(self, runner: Runner) -> tuple[list[Runner], list[int]]:
        """The parts, and what to add to their sample ids."""
        if self.shards_per_part is None:
            return [runner], [0]
        urls = runner.experiment.source.urls
        runners, shifts = [], []
        for begin in range(0, len(urls), self.shards_per_part):
            part = runner.experiment.replace(data={"shards": urls[begin : begin + self.shards_per_part]})
            runners.append(runner.replace(part))
            shifts.append(begin * IDS_PER_SHARD)
        return runners, shifts

    @staticmethod
    def columns(experiment: Experiment) -> dict[str, ScoreSpec]:
        """Column -> detector and whether it sees unit-length embeddings; raw ones have `_raw` in their name."""
        return {spec.detector + ("_raw" if spec.normalise is False else ""): spec for spec in experiment.specs()}

    def ranking(self, columns: Sequence[str] | dict[str, Any]) -> list[str]:
        """The columns that the order is made of."""
        if self.rank_by != "density":
            if self.rank_by not in columns:
                raise ValueError(
                    f"task.rank_by must be density or one of {', '.join(columns)}, got {self.rank_by!r}"
                )
            return [self.rank_by]
        for ending in ("", "_raw"):
            if chosen := [name + ending for name in DENSITY_RATIO if name + ending in columns]:
                return chosen
        raise ValueError(
            f"task.rank_by=density needs one of {', '.join(DENSITY_RATIO)} among the detectors, "
            f"which are {', '.join(columns)}; add one, or name a column to rank by"
        )

    @staticmethod
    def score(columns: Sequence[np.ndarray]) -> np.ndarray:
        """(n,) what samples are ordered by: one detector's scores, or the mean of the ranks of several."""
        return columns[0] if len(columns) == 1 else np.mean([rank_share(values) for values in columns], axis=0)

    def _scores(self, runner: Runner, failed: dict[str, str]) -> dict[str, np.ndarray]:
        """Column -> (n,) scores; a detector that fails is left out and named."""
        found = {}
        for column, spec in self.columns(runner.experiment).items():
            try:
                found[column] = runner.value("scores", spec=spec).values
            except Exception as error:
                if distributed.world_size() > 1:
                    raise
                log.exception("%s failed", column)
                failed[column] = f"{type(error).__name__}: {error}"
        return found

    def _result(
        self, runners: list[Runner], shifts: list[int], columns: dict[str, np.ndarray], failed: dict[str, str]
    ) -> ScanResult:
        import pandas as pd

        samples = Samples(runners, shifts)
        ranked_by = self.ranking(list(columns))
        score = self.score([columns[name] for name in ranked_by])
        z = np.mean([robust_z(columns[name]) for name in ranked_by], axis=0)
        n = len(samples)
        table = pd.DataFrame({"id": samples.ids, **_where(runners), "caption": samples.captions, **columns})
        table = table.assign(score=score, z=z, rank=rank(score))
        truth = np.concatenate([runner.value("truth") for runner in runners])
        planned = bool(truth.any())
        metrics = {}
        if planned and not truth.all():
            for name, values in {**columns, "score": score}.items():
                found = evaluate(Scores(samples.ids, values), truth)
                metrics[name] = {"auroc": found.auroc, "auprc": found.auprc, "fpr95": found.fpr95}
                metrics[name] |= {f"recall_at_{round(100 * share)}pct": r for share, r in found.recall_at.items()}
        groups = self.grouping.find(samples, score)
        group_of = np.zeros(n, np.int64)
        for number, group in reversed(list(enumerate(groups, start=1))):
            group_of[group.rows] = number
        table["group"] = group_of
        experiment = runners[0].experiment
        held_out = self.holdout > 0 and uses_own_test_set(experiment)
        facts = {
            "data": experiment.labels["data"],
            "model": experiment.labels["model"],
            "seed": experiment.seed,
            "n": n,
            "parts": len(runners),
            "held_out": sum(len(runner.value("test")) for runner in runners) if held_out else 0,
            "truth": int(truth.sum()) if planned else None,
        }
        for group in [group for group in groups if group.alarming][:5]:
            log.warning(
                "%d samples could teach the model a trigger for %r (strength %.2f)",
                group.size, group.caption, group.strength,
            )  # fmt: skip
        return ScanResult(
            table, list(columns), ranked_by, samples, groups, truth if planned else None, metrics, failed, facts
        )


def robust_z(values: np.ndarray) -> np.ndarray:
    """Distance from the median in units of the spread below it, (n,); on a logarithmic scale if all are positive.

    The spread is that of the lower half, down to the 16 % quantile: what is suspicious lies in the upper.
    """
    values = np.log(values) if values.min() > 0 else values
    median, low = np.quantile(values, (0.5, 0.1587))
    return (values - median) / max(float(median - low), np.finfo(np.float64).tiny)


def _where(runners: list[Runner]) -> dict[str, list[str | None]]:
    found = [origins(runner.experiment.source, np.asarray(runner.value("pairs").ids)) for runner in runners]
    return {
        "key": [key for one in found for key in one.keys],
        "shard": [shard for one in found for shard in one.shards],
        "url": [url for one in found for url in one.urls],
    }


def write_scores(result: ScanResult, folder: Path) -> Path:
    """scores.parquet, a row per sample, in the order of the data."""
    file = folder / "scores.parquet"
    result.table.to_parquet(file, index=False)
    return file
