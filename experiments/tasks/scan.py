"""`task=scan`: rank the samples of a data set by suspicion, without labels.

A scan is the pipeline up to the scores. Large data are scanned in parts, groups of `shards_per_part` shards: each
part is a run of its own, with its own neighbourhood scopes and its own stages in the store. So the scores are
the same whoever computes which part, a killed scan goes on with the part it was in, and memory holds one part:

    python run.py -m task=scan task.shards_per_part=16 task.parts=8 task.part=0,1,2,3,4,5,6,7 ...   # one job each
    python run.py task=scan task.shards_per_part=16 ...                        # finds all parts, ranks, reports

Each of the first jobs also leaves the tables of its parts, which `experiments.tasks.rank` ranks out of core.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detect import LocalDetector, Neighbours
from detect.conformal import conformal_among
from detect.metrics import rank, rank_share
from experiments.data.unscored import Unscored, find_unscored, joined
from experiments.pipeline.experiment import Experiment, ScoreSpec
from experiments.pipeline.runner import Runner
from experiments.runtime import distributed, refusals
from experiments.tasks.changed_pictures import READABLE, changed_pictures
from experiments.tasks.domains import domains_of
from experiments.tasks.duplicates import find_duplicates, least_cosine, table_over_all
from experiments.tasks.groups import Grouping
from experiments.tasks.samples import Samples
from experiments.tasks.scan_parts import ScannedParts, check_split, split
from experiments.tasks.scan_result import ScanResult, group_numbers, metrics_of, where_from, with_sizes

log = logging.getLogger(__name__)

WIDE, DENSITY_RATIO = ("pursuit", "multiscale"), ("slof", "lof", "dao")  # by preference; together


@dataclass(frozen=True)
class Scan:
    """How to scan, and what to show.

    rank_by: "density", or one detector's column, such as `dao` or `slof_raw`. Density is Pursuit's column,
        else Multiscale's; without both (not chosen, or data smaller than their k) it is the mean rank of SLOF, LOF
        and DAO.
    gallery: suspects shown.
    shards_per_part: scan this number of shards at a time; None: everything at once.
    part, parts: of the parts, compute only every `parts`-th, from the `part`-th on, and leave their tables.
    holdout: share of the data that its reader leaves out, for evaluation; a scan wants all.
    duplicate_cosine: least cosine from which pictures are near-duplicates; they must also be nearer than
        `grouping.near_quantile` of all samples are to their nearest. None: these are not looked for.
    check_sha256: compare the image files with the hashes that img2dataset noted beside them.
    """

    rank_by: str = "density"
    gallery: int = 120
    grouping: Grouping = field(default_factory=Grouping)
    shards_per_part: int | None = None
    part: int | None = None
    parts: int = 1
    holdout: float = 0.0
    duplicate_cosine: float | None = 0.98
    check_sha256: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.rank_by, str):
            raise ValueError(f"task.rank_by must be density or the name of a column, got {self.rank_by!r}")
        for name in ("gallery", "parts", "shards_per_part"):
            value = getattr(self, name)
            if not (value is None and name == "shards_per_part") and not (_whole(value) and value >= 1):
                raise ValueError(f"task.{name} must be a whole number of at least 1, got {value!r}")
        if self.part is not None and not (_whole(self.part) and 0 <= self.part < self.parts):
            raise ValueError(f"task.part must lie in 0..task.parts - 1 = {self.parts - 1}, got {self.part!r}")
        if not isinstance(self.holdout, (int, float)) or not 0 <= self.holdout < 1:
            raise ValueError(f"task.holdout must lie in [0, 1), got {self.holdout!r}")
        if self.duplicate_cosine is not None and not 0 < self.duplicate_cosine <= 1:
            raise ValueError(f"task.duplicate_cosine must lie in (0, 1] or be null, got {self.duplicate_cosine!r}")

    def check(self, experiment: Experiment) -> None:
        """Refuse, before any work, what cannot be ranked or split."""
        self.ranking(self.columns(experiment))
        if self.check_sha256 and not isinstance(experiment.source, READABLE):
            raise ValueError(
                "task.check_sha256 needs data=webdataset, parquet or hf, which note hashes beside images"
            )
        if self.shards_per_part is not None:
            check_split(experiment)
        elif self.part is not None:
            raise ValueError("task.part needs task.shards_per_part, which says what a part is")

    def run(self, runner: Runner) -> Any:
        """The task's result, or that of some of the parts; None on ranks above 0."""
        return self.scan(runner) if self.part is None else self.scan_parts(runner, self.part)

    def scan_parts(self, runner: Runner, first: int) -> ScannedParts | None:
        """Score every `parts`-th part from the `first` on, and rank nothing."""
        runners = dict(list(enumerate(self.split(runner)[0]))[first :: self.parts])
        columns: dict[int, dict[str, np.ndarray]] = {}
        score: dict[int, np.ndarray] = {}
        failed: dict[str, str] = {}
        for number, part in runners.items():
            log.info("part %d, one of %d of this job", number, len(runners))
            self._check_part(part)
            columns[number] = self._scores(part, failed)
            with suppress(ValueError):  # nothing is left to rank this part by
                score[number] = self.score([columns[number][name] for name in self.ranking(columns[number])])
        if not distributed.is_main():
            return None
        return ScannedParts(runners, columns, score, failed, self.parts, self.grouping)

    def scan(self, runner: Runner) -> ScanResult | None:
        """Score, rank and group."""
        runners, shifts = self.split(runner)
        failed: dict[str, str] = {}
        scored = []
        for number, part in enumerate(runners):
            if len(runners) > 1:
                log.info("part %d of %d", number, len(runners))
            self._check_part(part)
            scored.append(self._scores(part, failed))
        names = [name for name in self.columns(runner.experiment) if all(name in scores for scores in scored)]
        self._check_failed([*names, *failed], failed)
        columns = {name: np.concatenate([scores[name] for scores in scored]) for name in names}
        near = table_over_all(runners) if self.duplicate_cosine is not None else None
        if not distributed.is_main():
            return None
        return self._result(runners, shifts, columns, failed, near)

    def split(self, runner: Runner) -> tuple[list[Runner], list[int]]:
        """The parts, and what to add to their sample ids, which is nothing: shards have ids of their own."""
        runners = [runner] if self.shards_per_part is None else split(runner, self.shards_per_part)
        return runners, [0] * len(runners)

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
        for kinds in (*((name,) for name in WIDE), DENSITY_RATIO):
            for ending in ("", "_raw"):
                if chosen := [name + ending for name in kinds if name + ending in columns]:
                    return chosen
        raise ValueError(
            f"task.rank_by=density needs one of {', '.join((*WIDE, *DENSITY_RATIO))} among the detectors, "
            f"which are {', '.join(columns) or 'none'}; add one, or name a column to rank by"
        )

    def _check_part(self, runner: Runner) -> None:
        """Refuse, before anything is trained or embedded, samples too few to be ranked."""
        if not runner.experiment.config.target_new:
            runner.value("known_targets")
        n = len(runner.value("clean"))
        if not n:
            counts = find_unscored(
                runner.experiment.source, runner.entry("data").path, np.zeros(0, np.int64)
            ).counts()
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts.items())
            raise ValueError(f"there is no sound sample to scan; left out: {kinds or 'nothing'}")
        columns = self.columns(runner.experiment)
        for column in self.ranking(columns):
            name, detector = columns[column].detector, runner.experiment.detector(columns[column])
            scope = detector.scope_size(n) if isinstance(detector, LocalDetector) else None
            if scope is not None and detector.k >= scope and not self._left_out(runner, column):
                raise ValueError(
                    f"detector.{name}.k must lie in 1..{scope - 1}, got {detector.k}: there are {n:,} samples to "
                    f"scan, in neighbourhood scopes of {scope:,}"
                )

    def _left_out(self, runner: Runner, column: str) -> bool:
        """Whether this of `WIDE` is not computed, as the samples are too few and others can stand in for it."""
        columns = self.columns(runner.experiment)
        if self.rank_by != "density" or not column.startswith(WIDE) or not set(DENSITY_RATIO) & set(columns):
            return False
        detector = runner.experiment.detector(columns[column])
        return detector.k >= (detector.scope_size(len(runner.value("clean"))) or np.inf)

    @staticmethod
    def _unscored(runner: Runner, scored: np.ndarray) -> Unscored:
        """The samples of the data that are not among those with ids `scored`."""
        return find_unscored(runner.experiment.source, runner.entry("data").path, scored)

    def _check_failed(self, columns: Sequence[str], failed: dict[str, str]) -> None:
        """Raise RuntimeError if no column is left to rank by."""
        left = [name for name in columns if name not in failed]
        try:
            self.ranking(left)
        except ValueError:
            errors = "; ".join(f"{name}: {failed[name]}" for name in self.ranking(columns))
            raise RuntimeError(f"nothing to rank by, all of its detectors failed: {errors}") from None

    @staticmethod
    def score(columns: Sequence[np.ndarray]) -> np.ndarray:
        """(n,) what samples are ordered by: one detector's scores, or the mean of the ranks of several."""
        return columns[0] if len(columns) == 1 else np.mean([rank_share(values) for values in columns], axis=0)

    def _scores(self, runner: Runner, failed: dict[str, str]) -> dict[str, np.ndarray]:
        """Column -> (n,) scores; a detector that fails is left out and named."""
        found = {}
        _ = runner.entry("embeddings")  # what all detectors need fails once, and ends the scan
        for column, spec in self.columns(runner.experiment).items():
            if self._left_out(runner, column):
                log.info("%s is left out: there are too few samples for it", column)
                continue
            try:
                found[column] = runner.value("scores", spec=spec).values
            except Exception as error:
                if distributed.world_size() > 1:
                    raise
                refusals.report(column, error)
                failed[column] = f"{type(error).__name__}: {error}"
        return found

    def _result(
        self,
        runners: list[Runner],
        shifts: list[int],
        columns: dict[str, np.ndarray],
        failed: dict[str, str],
        near: Neighbours | None,
    ) -> ScanResult:
        import pandas as pd

        samples = Samples(runners, shifts)
        ranked_by = self.ranking(columns)
        score = self.score([columns[name] for name in ranked_by])
        left_out = [self._unscored(runner, np.asarray(runner.value("pairs").ids)) for runner in runners]
        where, where_unscored = where_from(runners, left_out)
        every = joined(left_out, shifts)
        table = pd.DataFrame({"id": samples.ids, **where, "caption": samples.captions, **columns})
        table = with_sizes(table.assign(score=score, p=conformal_among(score), rank=rank(score)))
        unscored = with_sizes(pd.DataFrame({"id": every.ids, **where_unscored, "status": every.status}))
        truth = np.concatenate([runner.value("truth") for runner in runners])
        planned = bool(truth.any())
        groups = self.grouping.find(samples, score)
        table["group"] = group_numbers(groups, len(samples))
        metadata = ScanResult.about(runners, samples, every, truth) | {"domains": domains_of(table)}
        if self.duplicate_cosine is not None:
            table["duplicates"], metadata["duplicates"] = find_duplicates(
                samples, near, least_cosine(self.duplicate_cosine, self.grouping, samples), table
            )
        if self.check_sha256:
            metadata["sha256"] = changed_pictures(runners, table)
        for group in [group for group in groups if group.alarming][:5]:
            log.warning(
                "%d samples could teach the model a trigger for %r (strength %.2f)",
                group.size,
                group.caption,
                group.strength,
            )
        return ScanResult(
            table,
            unscored,
            list(columns),
            ranked_by,
            samples,
            groups,
            truth if planned else None,
            metrics_of({**columns, "score": score}, samples.ids, truth),
            failed,
            metadata,
        )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
