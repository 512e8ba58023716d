"""`task=clean`: scan, then list the samples to keep, and write shards without the suspects if asked to.

Originals are never touched: new shards go to a folder of their own, which must be empty, and what was written is
counted again before it is called done.
"""

from __future__ import annotations

import json
import logging
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.provenance import sample_members
from experiments.data.shard_pairs import is_remote, local_path
from experiments.data.shards import IDS_PER_SHARD, Shards
from experiments.data.tar_index import index_shard
from experiments.pipeline.experiment import Experiment
from experiments.pipeline.runner import Runner
from experiments.tasks.scan import Scan, ScanResult

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Threshold:
    """Which samples count as suspects; exactly one of these is given.

    share: so large a part of the samples, the most suspicious.
    count: so many of them.
    cut: those whose robust score `z` lies more than `cut` above the median.
    false_positives: as many as can be removed while at most this share of the clean samples is expected to go. The
        clean scores above the median are taken to mirror those below it, so that a heavy tail is not mistaken
        for clean.
    """

    share: float | None = None
    count: int | None = None
    cut: float | None = None
    false_positives: float | None = None

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"task.remove needs exactly one of share, count, cut and false_positives, got {given or 'none'}"
            )
        for name in ("share", "false_positives"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"task.remove.{name} must lie in (0, 1), got {value}")
        if self.count is not None and self.count < 1:
            raise ValueError(f"task.remove.count must be at least 1, got {self.count}")
        if self.cut is not None and self.cut <= 0:
            raise ValueError(f"task.remove.cut must be above 0, got {self.cut}")

    def suspects(self, order: np.ndarray, z: np.ndarray) -> np.ndarray:
        """(n,) bool. order: (n,) rows, the most suspicious first.  z: (n,) robust scores."""
        removed = np.zeros(len(order), bool)
        if self.share is not None or self.count is not None:
            number = self.count if self.count is not None else round(self.share * len(order))  # type: ignore[operator]
            if number >= len(order):
                raise ValueError(
                    f"task.remove.count must be below the number of samples, {len(order)}, got {number}"
                )
            removed[order[:number]] = True
        elif self.cut is not None:
            removed = z > self.cut
        else:
            assert self.false_positives is not None
            mirrored = np.abs(z[z <= 0])  # how far clean samples may lie above the median
            allowed = 2 * self.false_positives  # of the upper half, for the lower half loses none
            removed = z > (np.quantile(mirrored, 1 - allowed) if allowed < 1 else 0.0)
        return removed

    def __str__(self) -> str:
        return next(f"{name} = {value}" for name, value in vars(self).items() if value is not None)


@dataclass(frozen=True)
class CleanResult:
    """removed: (n,) bool.  shards: file name -> samples written; None if no shards were asked for.

    with_groups: whether alarming groups were removed beside what `rule` says.
    """

    scan: ScanResult
    rule: Threshold
    removed: np.ndarray
    shards: dict[str, int] | None
    with_groups: bool

    def write(self, folder: Path) -> tuple[str, Sequence[Mapping[str, Any]]]:
        """kept.parquet, kept.txt and removed.parquet; what to print, and the row of results.csv."""
        table, kept = self.scan.table, ~self.removed
        known = ["id", "key", "shard"]
        table.loc[kept, known].to_parquet(folder / "kept.parquet", index=False)
        table.loc[self.removed].sort_values("rank").to_parquet(folder / "removed.parquet", index=False)
        ids = table["id"].to_numpy()
        (folder / "kept.txt").write_text("".join(f"{id}\n" for id in ids[kept]))
        taken = [group for group in self.scan.groups if group.alarming] if self.with_groups else []
        groups = f", and {len(taken)} alarming groups of {sum(group.size for group in taken):,}" if taken else ""
        row: dict[str, Any] = {"n": len(ids), "removed": int(self.removed.sum()), "kept": int(kept.sum())}
        lines = [
            "# Clean", "",
            f"{row['removed']:,} of {row['n']:,} samples removed ({self.rule}{groups}), {row['kept']:,} kept.",
            "", "kept.parquet and kept.txt: what stays; removed.parquet: what goes, with its scores.",
        ]  # fmt: skip
        if self.scan.truth is not None:
            row |= {"n_poison": int(self.scan.truth.sum()), "left": int((self.scan.truth & kept).sum())}
            row["clean_removed"] = row["removed"] - (row["n_poison"] - row["left"])
            lines += ["", f"Of {row['n_poison']:,} samples to be found {row['left']:,} are left; "
                      f"{row['clean_removed']:,} clean ones went."]  # fmt: skip
        if self.shards is not None:
            total = sum(self.shards.values())
            row["written"] = total
            lines += ["", f"{total:,} samples written in {len(self.shards)} new shards."]
        text = "\n".join(lines) + "\n"
        (folder / "summary.md").write_text(text, encoding="utf-8")
        return text, [row]


@dataclass(frozen=True)
class Clean(Scan):
    """A scan with a threshold; new shards go to the folder `write_shards` (None: nowhere).

    remove_groups: remove alarming groups too, wherever their members rank.
    """

    remove: Threshold = field(kw_only=True)
    write_shards: str | None = None
    remove_groups: bool = True

    def check(self, experiment: Experiment) -> None:
        """Refuse, before any work, what would fail after it."""
        super().check(experiment)
        if self.part is not None:
            raise ValueError(
                "task.part computes a part of a scan, clean needs the whole one: use task=scan for parts"
            )
        if self.write_shards is None:
            return
        if not isinstance(experiment.source, Shards):
            raise ValueError("task.write_shards rewrites tar shards, so it needs data=webdataset")
        remote = [url for url in experiment.source.urls if is_remote(url)]
        if remote:
            raise ValueError(f"task.write_shards reads local shards; {remote[0]} is not: use kept.parquet instead")
        names = [Path(url).name for url in experiment.source.urls]
        if len(set(names)) < len(names):
            raise ValueError("task.write_shards keeps the names of the shards, but some are named alike")
        target = Path(self.write_shards)
        if target.exists() and any(target.iterdir()):
            raise ValueError(f"task.write_shards must be a new or empty folder, but {target} holds files")

    def run(self, runner: Runner) -> CleanResult | None:
        result = self.scan(runner)
        if result is None:
            return None
        removed = self.remove.suspects(result.order, result.table["z"].to_numpy())
        if self.remove_groups:
            for group in result.groups:
                removed[group.rows] |= group.alarming
        if not removed.any():
            log.warning("nothing lies beyond the threshold (%s): all samples are kept", self.remove)
        shards = None
        if self.write_shards is not None:
            bad = result.table["id"].to_numpy()[removed]
            shards = rewrite(runner.experiment.source, bad, Path(self.write_shards))
        return CleanResult(result, self.remove, removed, shards, self.remove_groups)


def rewrite(data: Shards, removed: np.ndarray, folder: Path) -> dict[str, int]:
    """Copy the shards without the samples `removed` (ids); shard -> samples in it, counted again after writing.

    Files are copied byte for byte, samples that were damaged or held out too. A shard appears under its name when
    it is whole. Raises RuntimeError if a count does not come out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number, position = np.divmod(np.asarray(removed, np.int64), IDS_PER_SHARD)
    written: dict[str, int] = {}
    for shard, url in enumerate(data.urls):
        source = Path(local_path(url))
        bad = set(position[number == shard].tolist())
        before = _count(data, source)
        unfinished = folder / (source.name + ".partial")
        _copy(source, unfinished, bad, before)
        after = _count(data, unfinished)
        if after != before - len(bad):
            raise RuntimeError(f"{source.name}: {before} samples, {len(bad)} to remove, but {after} were written")
        unfinished.rename(folder / source.name)
        written[source.name] = after
    manifest = {"from": data.urls, "removed": len(removed), "samples": written}
    (folder / "cleaned.json").write_text(json.dumps(manifest, indent=1))
    return written


def _copy(source: Path, target: Path, bad: set[int], samples: int) -> None:
    with open(source, "rb") as stream, tarfile.open(target, "w") as tar:
        length = os.stat(stream.fileno()).st_size
        for position, (_, members) in enumerate(sample_members(stream, length)):
            if position in bad or position >= samples:  # what a broken tar was cut in
                continue
            for member in members:
                stream.seek(member.offset)
                info = tarfile.TarInfo(member.name)
                info.size = member.size
                tar.addfile(info, stream)


def _count(data: Shards, file: Path) -> int:
    with open(file, "rb") as stream:
        return index_shard(stream, os.stat(file).st_size, file.name, data.fields, data.limits).samples
