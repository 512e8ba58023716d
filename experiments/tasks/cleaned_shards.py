"""Writes tar shards without what a scan has removed or not scored, and counts what became of every sample.

Every sample is kept, removed or unscored; for each shard and in total the three must add up to the samples that the
shard holds, as counted again from the shard itself.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data.cleaned_folder import PARTIAL, begin, claim, finish
from experiments.data.damage import Issue
from experiments.data.provenance import sample_members
from experiments.data.sample_ids import locate
from experiments.data.shard_copy import Copy, plan_copy
from experiments.data.shard_pairs import local_path
from experiments.data.shards import Shards
from experiments.data.tar_index import PICTURES, ShardIndex, index_shard

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

KEPT, REMOVED, UNSCORED = "kept", "removed", "unscored"
"""What becomes of a sample."""


def tally(fates: pd.DataFrame, members: int, of: str = "the data") -> dict[str, Any]:
    """Counts of samples: members, kept, removed, and unscored by kind; of those that were decided, each decision.

    fates: a row per sample: id, fate, status, and decision if there are any.  Raises RuntimeError unless
    kept + removed + unscored = members.
    """
    counts = Counter(fates["fate"])
    kinds = Counter(fates.loc[fates["fate"] == UNSCORED, "status"])
    kept, removed, unscored = counts[KEPT], counts[REMOVED], sum(kinds.values())
    if kept + removed + unscored != members or fates["id"].duplicated().any():
        raise RuntimeError(
            f"{of}: {kept:,} samples kept + {removed:,} removed + {unscored:,} unscored are not the {members:,} "
            "that there are; have the data changed since they were scanned?"
        )
    found = {"members": members, KEPT: kept, REMOVED: removed, UNSCORED: dict(kinds.most_common())}
    if "decision" in fates:
        found["decisions"] = dict(sorted(Counter(fates.loc[fates["decision"] != "", "decision"]).items()))
    return found


def rewrite(
    data: Shards, fates: pd.DataFrame, folder: Path, settings: Mapping[str, Any], keep_unscored: bool = False
) -> dict[str, dict[str, Any]]:
    """Copy the shards without the removed samples and, unless `keep_unscored`, the unscored ones.

    fates: a row per sample of the data: id, fate, status.  settings: of the clean, see `cleaned_folder.claim`.
    A shard appears under its name when it is whole. A folder that a killed clean with the same settings and
    suspects has left is completed. Raises ValueError for a folder that holds anything else, RuntimeError if a count
    does not come out.

    Returns for each shard's file name its `tally`, and
    written: samples in it.
    folded: samples left out, as readers would take them for part of the one before, of the same key.
    links: left out with the samples that they name.
    unseen: further images of a sample, which were not scored, left out unless `keep_unscored`.
    damage: if nothing of it can be read; it is not written then.
    """
    settings = {**settings, "digest": _digest(data, fates)}
    claim(folder, [Path(url).name for url in data.urls], settings)
    begin(folder, settings)
    number, position = locate(fates["id"].to_numpy(np.int64), data.urls)
    wanted = fates["fate"].isin([KEPT, UNSCORED] if keep_unscored else [KEPT]).to_numpy()
    report: dict[str, dict[str, Any]] = {}
    for shard, url in enumerate(data.urls):
        source, mine = Path(local_path(url)), number == shard
        try:
            index = _index(data, source)
        except OSError as error:
            index = ShardIndex(issues=[Issue(-1, url, error.strerror or "cannot be read")])
        counts = tally(fates[mine], index.samples, source.name)
        if not index.samples:
            kinds = ", ".join(finding.kind for finding in index.issues)
            report[source.name] = counts | {"written": 0, "damage": kinds}
            continue
        _check_positions(source, index)
        seen = () if keep_unscored else index.offsets
        copy = _write(data, source, folder / source.name, set(position[mine & wanted].tolist()), seen)
        report[source.name] = counts | {
            "written": len(copy.samples),
            "folded": len(copy.folded),
            "links": copy.links,
            "unseen": copy.unseen,
        }
    total = tally(fates, sum(counts["members"] for counts in report.values()))
    samples = {name: counts["written"] for name, counts in report.items()}
    finish(folder, {**settings, **total, "samples": samples, "shards": report})
    return report


def _write(data: Shards, source: Path, target: Path, kept: set[int], seen: Collection[int]) -> Copy:
    """Write one shard and look at it again, unless a run before has written it.

    seen: offsets of the images that were scored; of a sample's images no other is written. Empty: all are.
    """
    pictures = PICTURES.union(data.fields.image_keys)
    copy = plan_copy(source, kept, pictures, set(seen)) if seen else plan_copy(source, kept)
    if len(copy.samples) + len(copy.folded) != len(kept):
        raise RuntimeError(f"{source.name}: {len(kept)} samples to keep, but {len(copy.samples)} were found")
    if copy.folded:
        log.warning(
            "%s: %d samples are left out: without what was removed between them, readers would take them for part "
            "of the sample before, which has the same key",
            source.name,
            len(copy.folded),
        )
    if not (_is_whole(data, target, copy) and copy.is_in(source, target)):
        unfinished = target.with_name(target.name + PARTIAL)
        copy.write(source, unfinished)
        if not _is_whole(data, unfinished, copy):
            raise RuntimeError(f"{target}: what was written is not the {len(copy.samples)} samples to keep")
        unfinished.rename(target)
    return copy


def _is_whole(data: Shards, file: Path, copy: Copy) -> bool:
    """Whether a shard has the size and the samples that it should have."""
    if not file.exists() or file.stat().st_size != copy.size:
        return False
    with open(file, "rb") as stream:
        keys = [key for key, _ in sample_members(stream, copy.size)]
    return keys == copy.samples and _index(data, file).samples == len(keys)


def _check_positions(source: Path, index: ShardIndex) -> None:
    """Refuse to go by positions in which the reader of the samples and their copier differ."""
    with open(source, "rb") as stream:
        listed = list(sample_members(stream, os.fstat(stream.fileno()).st_size))
    for position, offset in zip(index.positions, index.offsets, strict=True):
        if position >= len(listed) or offset not in [member.offset for member in listed[position][1]]:
            raise RuntimeError(f"{source.name}: sample {position} is not where its index says")


def _index(data: Shards, file: Path) -> ShardIndex:
    with open(file, "rb") as stream:
        return index_shard(stream, os.fstat(stream.fileno()).st_size, file.name, data.fields, data.limits)


def _digest(data: Shards, fates: pd.DataFrame) -> str:
    """Of the shards as they are, and of what is to become of each sample."""
    digest = hashlib.sha256(data.fingerprint().encode())
    digest.update(fates["id"].to_numpy("<i8").tobytes())
    digest.update("\n".join(fates["fate"]).encode())
    return digest.hexdigest()[:32]
