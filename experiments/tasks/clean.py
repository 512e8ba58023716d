"""`task=clean`: scan, list the samples to keep, and write tar or Parquet shards without the suspects if asked to.

Suspects lie beyond a threshold, or were decided to be poison by a person, whose decisions win over the threshold.
What leaves was scored: a sample that the reader left out is dropped, unless `task.unscored=keep`. Originals are
never touched: new shards go to a folder of their own (`experiments.data.cleaned_folder`), and are counted again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data.cleaned_folder import claim
from experiments.data.row_data import Parquet
from experiments.data.shard_pairs import is_remote
from experiments.data.shards import Shards
from experiments.data.unscored import SCORED, unscored_lines
from experiments.pipeline.experiment import Experiment
from experiments.pipeline.runner import Runner
from experiments.tasks.cleaned_copy import KEPT, REMOVED, UNSCORED, Copier, tally, write_copy
from experiments.tasks.cleaned_parquet import ParquetCopier
from experiments.tasks.cleaned_shards import ShardCopier
from experiments.tasks.decisions import Decisions, decided_lines
from experiments.tasks.scan import Scan
from experiments.tasks.scan_result import ScanResult
from experiments.tasks.thresholds import RULES, Threshold

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CleanResult:
    """fates: a row per sample, by id: the scan's columns, `status`, and `fate`: kept, removed or unscored; with
    decisions also `decision`, `note` and `by_rule`: whether the sample would be removed without them.

    counts: of all of them, see `cleaned_copy.tally`.  shards: file name -> its counts; None if no shards were
    asked for.  with_groups: whether alarming groups were removed beside what `rule` says.  keep_unscored: whether
    the unscored samples stay.
    """

    scan: ScanResult
    rule: Threshold
    fates: pd.DataFrame
    counts: dict[str, Any]
    shards: dict[str, dict[str, Any]] | None
    with_groups: bool
    keep_unscored: bool

    def write(self, folder: Path) -> tuple[str, Sequence[Mapping[str, Any]]]:
        """scores.parquet, kept.parquet, kept.txt and removed.parquet; what to print, and the row of results.csv."""
        fate = self.fates["fate"]
        kept = self.fates[fate.isin([KEPT, UNSCORED] if self.keep_unscored else [KEPT])]
        self.fates.to_parquet(folder / "scores.parquet", index=False)
        kept[["id", "key", "shard", "status"]].to_parquet(folder / "kept.parquet", index=False)
        gone = self.fates[fate == REMOVED].sort_values("rank")
        gone.to_parquet(folder / "removed.parquet", index=False)
        (folder / "kept.txt").write_text("".join(f"{id}\n" for id in kept["id"]))
        row, lines = self._counted()
        if self.scan.truth is not None:
            left = self.scan.truth & self.scan.table["id"].isin(kept["id"]).to_numpy()
            row |= {"n_poison": int(self.scan.truth.sum()), "left": int(left.sum())}
            row["clean_removed"] = row["removed"] - (row["n_poison"] - row["left"])
            lines += [
                "",
                f"Of {row['n_poison']:,} samples to be found {row['left']:,} are left; "
                f"{row['clean_removed']:,} clean ones went.",
            ]
        if self.shards is not None:
            row["written"] = sum(counts["written"] for counts in self.shards.values())
            lines += ["", f"{row['written']:,} samples written in {len(self.shards)} new shards."]
            lines += [f"{text}." for text in _oddities(self.shards)]
        text = "\n".join(lines) + "\n"
        (folder / "summary.md").write_text(text, encoding="utf-8")
        return text, [row]

    def _counted(self) -> tuple[dict[str, Any], list[str]]:
        """The row of results.csv, and the first lines of summary.md."""
        taken = [group for group in self.scan.groups if group.alarming] if self.with_groups else []
        groups = f", and {len(taken)} alarming groups of {sum(group.size for group in taken):,}" if taken else ""
        kinds, members = self.counts[UNSCORED], self.counts["members"]
        row: dict[str, Any] = {
            "members": members,
            "n": len(self.scan.table),
            "removed": self.counts[REMOVED],
            "kept": self.counts[KEPT],
            "unscored": sum(kinds.values()),
            **self.counts.get("decisions", {}),
        }
        fate = "kept all the same (task.unscored=keep)" if self.keep_unscored else "dropped"
        return row, [
            "# Clean",
            "",
            f"{row['removed']:,} of {row['n']:,} scored samples removed ({self.rule}{groups}).",
            *(decided_lines(self.fates, self.keep_unscored) if "decision" in self.fates else []),
            *unscored_lines(kinds, self.scan.metadata["lost"], fate),
            "",
            " + ".join(f"{row[name]:,} {name}" for name in (KEPT, REMOVED, UNSCORED)) + f" = {members:,}.",
            "",
            "scores.parquet: every sample, its status and what became of it; kept.parquet and kept.txt: what "
            "stays; removed.parquet: what goes, with its scores.",
        ]


class Clean:
    """A scan with a threshold, decisions or both; new shards go to the folder `write_shards` (None: nowhere).

    remove: the threshold; without a rule, only what was decided to be poison is removed.
    decisions: CSV file of `experiments.tasks.decisions`, which win over the threshold and the groups.
    remove_groups: beside a threshold, remove alarming groups too, wherever their members rank.
    unscored: "drop" or "keep" the samples that the reader left out and that have no scores.
    scan: the settings of the scan (`experiments.tasks.scan.Scan`), which stand beside these in the configuration.
    """

    def __init__(
        self,
        remove: Threshold,
        decisions: str | None = None,
        write_shards: str | None = None,
        remove_groups: bool = True,
        unscored: str = "drop",
        **scan: Any,
    ) -> None:
        self.scan = Scan(**scan)
        self.remove, self.decisions, self.write_shards = remove, decisions, write_shards
        self.remove_groups, self.unscored = remove_groups, unscored
        if self.unscored not in ("drop", "keep"):
            raise ValueError(f"task.unscored must be drop or keep, got {self.unscored!r}")
        if not isinstance(self.remove, Threshold):
            raise ValueError(f"task.remove must hold one of {', '.join(RULES)}, got {self.remove!r}")
        if self.decisions is not None and not (isinstance(self.decisions, str) and self.decisions):
            raise ValueError(f"task.decisions must name a CSV file, got {self.decisions!r}")
        if not self.remove.given and self.decisions is None:
            raise ValueError(f"task.remove needs exactly one of {', '.join(RULES)}, or task.decisions, got none")
        self._decisions()
        if self.write_shards is not None and not (isinstance(self.write_shards, str) and self.write_shards):
            raise ValueError(f"task.write_shards must name a folder, got {self.write_shards!r}")

    @property
    def gallery(self) -> int:
        return self.scan.gallery

    def check(self, experiment: Experiment) -> None:
        """Refuse, before any work, what would fail after it."""
        self.scan.check(experiment)
        if self.scan.part is not None:
            raise ValueError(
                "task.part computes a part of a scan, clean needs the whole one: use task=scan for parts"
            )
        if self.write_shards is None:
            return
        if not isinstance(experiment.source, (Shards, Parquet)):
            raise ValueError(
                "task.write_shards rewrites tar shards or Parquet files, so it needs data=webdataset or "
                "data=parquet; kept.parquet lists what stays"
            )
        remote = [url for url in getattr(experiment.source, "urls", ()) if is_remote(url)]
        if remote:
            raise ValueError(f"task.write_shards reads local shards; {remote[0]} is not: use kept.parquet instead")
        names = self._copier(experiment.source).names
        if len(set(names)) < len(names):
            raise ValueError("task.write_shards keeps the names of the shards, but some are named alike")
        claim(Path(self.write_shards), names, self._settings(experiment.source))

    def run(self, runner: Runner) -> CleanResult | None:
        result = self.scan.scan(runner)
        if result is None:
            return None
        removed, table = self.remove.suspects(result.table)
        if self.remove.given and not removed.any():
            log.warning("nothing lies beyond the threshold (%s)", self.remove)
        with_groups = self.remove_groups and self.remove.given
        if with_groups:
            for group in result.groups:
                removed[group.rows] |= group.alarming
            removed &= ~table["known_clean"].to_numpy()
        result = replace(result, table=table)
        fates = _fates(result, removed)
        if (decisions := self._decisions()) is not None:
            fates = decisions.overrule(fates)
        counts = tally(fates, result.metadata["members"])
        shards = None
        if self.write_shards is not None:
            source = runner.experiment.source
            target, settings = Path(self.write_shards), self._settings(source)
            shards = write_copy(self._copier(source), fates, target, settings, self.unscored == "keep")
        return CleanResult(result, self.remove, fates, counts, shards, with_groups, self.unscored == "keep")

    def _decisions(self) -> Decisions | None:
        return None if self.decisions is None else Decisions.read(self.decisions)

    def _copier(self, data: Shards | Parquet) -> Copier:
        if isinstance(data, Shards):
            return ShardCopier(data, self.unscored == "keep")
        return ParquetCopier(data)

    def _settings(self, data: Shards | Parquet) -> dict[str, Any]:
        """What a folder of cleaned shards must have been begun with to be completed."""
        decisions = self._decisions()
        return {
            **({"data.shards": data.urls} if isinstance(data, Shards) else {"data.path": data.files()}),
            "task.remove": str(self.remove),
            "task.decisions": None if decisions is None else decisions.digest,
            "task.remove_groups": self.remove_groups,
            "task.unscored": self.unscored,
        }


def _fates(result: ScanResult, removed: np.ndarray) -> pd.DataFrame:
    """A row per sample of the data; removed: (n,) bool, of the scored ones."""
    fates = result.all_samples
    gone = set(result.table["id"].to_numpy()[removed].tolist())
    fate = np.where(fates["id"].isin(gone), REMOVED, KEPT)
    return fates.assign(fate=np.where(fates["status"] == SCORED, fate, UNSCORED))


def _oddities(shards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader of the cleaned shards' summary should know of."""
    texts = [
        f"{name} holds nothing that can be read ({counts['damage']}) and was not written"
        for name, counts in shards.items()
        if "damage" in counts
    ]
    folded = sum(counts.get("folded", 0) for counts in shards.values())
    links = sum(counts.get("links", 0) for counts in shards.values())
    unseen = sum(counts.get("unseen", 0) for counts in shards.values())
    unreadable = sum(counts.get("unreadable", 0) for counts in shards.values())
    by_path = sum(counts.get("by_path", 0) for counts in shards.values())
    if unreadable:
        texts.append(
            f"{unreadable:,} samples to keep were not written: another column of their row group is broken"
        )
    if by_path:
        texts.append(
            f"{by_path:,} of the images written are paths, relative to the folder of the old files or to "
            "data.root: give data.root to read the new ones"
        )
    if unseen:
        texts.append(f"{unseen:,} further images of samples with several were not scored, and were left out")
    if folded:
        texts.append(f"{folded:,} samples to keep were not written: they would follow one of the same key")
    if links:
        texts.append(f"{links:,} links to samples that went are gone too")
    return texts
