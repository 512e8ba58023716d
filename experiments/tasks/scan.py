"""`task=scan`: rank the samples of a data set by suspicion, without labels.

A scan is the pipeline up to the scores. Large data are scanned in parts, groups of `shards_per_part` shards: each
part is a study of its own, with its own neighbourhood scopes and its own stages in the store. So the scores are
the same whoever computes which part, a killed scan goes on with the part it was in, and memory holds one part:

    python run.py -m task=scan task.shards_per_part=16 task.parts=8 task.part=0,1,2,3,4,5,6,7 ...   # one job each
    python run.py task=scan task.shards_per_part=16 ...                        # finds all parts, ranks, reports
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from detect import LocalDetector
from detect.conformal import conformal_among
from detect.metrics import rank, rank_share
from experiments.data.sample_ids import shard_name
from experiments.data.shards import Shards
from experiments.data.unscored import find_unscored, joined
from experiments.pipeline.study import Study
from experiments.runtime import distributed, refusals
from experiments.tasks.groups import Grouping
from experiments.tasks.samples import Samples
from experiments.tasks.scan_result import ScanResult, group_numbers, metrics_of, where_from

log = logging.getLogger(__name__)

DENSITY_RATIO = ("slof", "lof", "dao")


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

    def check(self, study: Study) -> None:
        """Refuse, before any work, what cannot be ranked or split."""
        self.ranking(self.columns(study))
        if self.shards_per_part is not None:
            if not isinstance(study.data, Shards):
                raise ValueError("task.shards_per_part splits tar shards, so it needs data=webdataset")
            if study.model_spec.trains:
                raise ValueError("task.shards_per_part needs a trained model: see model=trained in docs/scan.md")
            names = list(map(shard_name, study.data.urls))
            if len(set(names)) < len(names):
                raise ValueError("task.shards_per_part needs shards of different file names, which ids are made of")
        elif self.part is not None:
            raise ValueError("task.part needs task.shards_per_part, which says what a part is")

    def run(self, study: Study) -> Any:
        """The task's result; None if this was only some of the parts, and on ranks above 0."""
        return self.scan(study)

    def scan(self, study: Study) -> ScanResult | None:
        """Score, rank and group."""
        studies, shifts = self.split(study)
        if self.part is not None:
            for number in range(self.part, len(studies), self.parts):
                log.info("part %d of %d", number, len(studies))
                self._check_part(studies[number])
                self._scores(studies[number], {})
            return None
        failed: dict[str, str] = {}
        scored = []
        for number, part in enumerate(studies):
            if len(studies) > 1:
                log.info("part %d of %d", number, len(studies))
            self._check_part(part)
            scored.append(self._scores(part, failed))
        self._check_failed(self.columns(study), failed)
        columns = {
            name: np.concatenate([scores[name] for scores in scored])
            for name in self.columns(study)
            if name not in failed
        }
        if not distributed.is_main():
            return None
        return self._result(studies, shifts, columns, failed)

    def split(self, study: Study) -> tuple[list[Study], list[int]]:
        """The parts, and what to add to their sample ids, which is nothing: shards have ids of their own."""
        if self.shards_per_part is None:
            return [study], [0]
        urls = study.data.urls
        studies, shifts = [], []
        for begin in range(0, len(urls), self.shards_per_part):
            config = copy.deepcopy(study.config)
            OmegaConf.update(config, "data.shards", urls[begin : begin + self.shards_per_part])
            studies.append(Study(config))
            shifts.append(0)
        return studies, shifts

    @staticmethod
    def columns(study: Study) -> dict[str, tuple[str, bool | None]]:
        """Column -> detector and whether it sees unit-length embeddings; raw ones have `_raw` in their name."""
        return {name + ("_raw" if flag is False else ""): (name, flag) for name, flag in study.variants()}

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
            f"which are {', '.join(columns) or 'none'}; add one, or name a column to rank by"
        )

    def _check_part(self, study: Study) -> None:
        """Refuse, before anything is trained or embedded, samples too few to be ranked."""
        n = len(study.clean)
        if not n:
            counts = find_unscored(study.data, study.data_entry.path, np.zeros(0, np.int64)).counts()
            kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts.items())
            raise ValueError(f"there is no sound sample to scan; left out: {kinds or 'nothing'}")
        columns = self.columns(study)
        for column in self.ranking(columns):
            name, detector = columns[column][0], study.variant(columns[column])
            if not isinstance(detector, LocalDetector) or detector.scope == "reference":
                continue
            scope = min(n, detector.batch_size) if detector.scope == "batch" else n
            if detector.k >= scope:
                raise ValueError(
                    f"detector.{name}.k must lie in 1..{scope - 1}, got {detector.k}: there are {n:,} samples to "
                    f"scan, in neighbourhood scopes of {scope:,}"
                )

    def _check_failed(self, columns: dict[str, Any], failed: dict[str, str]) -> None:
        """Raise RuntimeError if no column is left to rank by."""
        ranking = self.ranking(columns)
        if all(name in failed for name in ranking):
            errors = "; ".join(f"{name}: {failed[name]}" for name in ranking)
            raise RuntimeError(f"nothing to rank by, all of its detectors failed: {errors}")

    @staticmethod
    def score(columns: Sequence[np.ndarray]) -> np.ndarray:
        """(n,) what samples are ordered by: one detector's scores, or the mean of the ranks of several."""
        return columns[0] if len(columns) == 1 else np.mean([rank_share(values) for values in columns], axis=0)

    def _scores(self, study: Study, failed: dict[str, str]) -> dict[str, np.ndarray]:
        """Column -> (n,) scores; a detector that fails is left out and named."""
        found = {}
        _ = study.embed_entry  # what all detectors need fails once, and ends the scan
        for column, variant in self.columns(study).items():
            try:
                found[column] = np.load(study.score_entry(variant).path / "scores.npy")
            except Exception as error:
                if distributed.world_size() > 1:
                    raise
                refusals.report(column, error)
                failed[column] = f"{type(error).__name__}: {error}"
        return found

    def _result(
        self, studies: list[Study], shifts: list[int], columns: dict[str, np.ndarray], failed: dict[str, str]
    ) -> ScanResult:
        import pandas as pd

        samples = Samples(studies, shifts)
        ranked_by = [name for name in self.ranking(self.columns(studies[0])) if name in columns]
        score = self.score([columns[name] for name in ranked_by])
        left_out = [
            find_unscored(study.data, study.data_entry.path, np.asarray(study.pairs.ids)) for study in studies
        ]
        where, where_unscored = where_from(studies, left_out)
        every = joined(left_out, shifts)
        table = pd.DataFrame({"id": samples.ids, **where, "caption": samples.captions, **columns})
        table = table.assign(score=score, p=conformal_among(score), rank=rank(score))
        unscored = pd.DataFrame({"id": every.ids, **where_unscored, "status": every.status})
        truth = np.concatenate([study.truth for study in studies])
        planned = bool(truth.any())
        groups = self.grouping.find(samples, score)
        table["group"] = group_numbers(groups, len(samples))
        study = studies[0]
        facts = {
            "data": type(study.data).__name__.lower(),
            "model": getattr(study.model_spec, "name", study.model_spec.kind),
            "seed": study.seed,
            "n": len(samples),
            "members": len(samples) + len(every.ids),
            "unscored": every.counts(),
            "lost": every.lost,
            "parts": len(studies),
            "truth": int(truth.sum()) if planned else None,
        }
        for group in [group for group in groups if group.alarming][:5]:
            log.warning(
                "%d samples could teach the model a trigger for %r (strength %.2f)",
                group.size, group.caption, group.strength,
            )  # fmt: skip
        return ScanResult(
            table, unscored, list(columns), ranked_by, samples, groups, truth if planned else None,
            metrics_of({**columns, "score": score}, samples.ids, truth), failed, facts,
        )  # fmt: skip


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
