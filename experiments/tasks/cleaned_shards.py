"""Writes tar shards without what a scan has removed or not scored, and counts what became of every sample."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.damage import Issue
from experiments.data.provenance import sample_members
from experiments.data.sample_ids import locate
from experiments.data.shard_copy import Copy, plan_copy
from experiments.data.shard_pairs import local_path
from experiments.data.shards import Shards
from experiments.data.tar_index import PICTURES, ShardIndex, index_shard
from experiments.tasks.cleaned_copy import write_whole_file

log = logging.getLogger(__name__)


class ShardCopier:
    """A `cleaned_copy.Copier` of tar shards.

    Of each shard it reports
    written: samples in it.
    folded: samples left out, as readers would take them for part of the one before, of the same key.
    links: left out with the samples that they name.
    unseen: further images of a sample, which were not scored, left out unless `keep_unscored`.
    damage: if nothing of it can be read; it is not written then.
    """

    def __init__(self, data: Shards, keep_unscored: bool = False) -> None:
        self._data, self._keep_unscored = data, keep_unscored
        self.names = [Path(url).name for url in data.urls]
        self._index: tuple[int, ShardIndex] | None = None

    def fingerprint(self) -> str:
        return self._data.fingerprint()

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return locate(ids, self._data.urls)

    def samples(self, number: int) -> int:
        return self._indexed(number).samples

    def copy(self, number: int, target: Path, kept: np.ndarray) -> dict[str, Any]:
        source, index = self._source(number), self._indexed(number)
        if not index.samples:
            return {"written": 0, "damage": ", ".join(finding.kind for finding in index.issues)}
        _check_positions(source, index)
        copy = _write(self._data, source, target, set(kept.tolist()), () if self._keep_unscored else index.offsets)
        return {
            "written": len(copy.samples),
            "folded": len(copy.folded),
            "links": copy.links,
            "unseen": copy.unseen,
        }

    def _source(self, number: int) -> Path:
        return Path(local_path(self._data.urls[number]))

    def _indexed(self, number: int) -> ShardIndex:
        if self._index is None or self._index[0] != number:
            try:
                index = _index(self._data, self._source(number))
            except OSError as error:
                reason = error.strerror or "cannot be read"
                index = ShardIndex(issues=[Issue(-1, self._data.urls[number], reason)])
            self._index = number, index
        return self._index[1]


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
        write_whole_file(
            target,
            lambda file: copy.write(source, file),
            lambda file: _is_whole(data, file, copy),
            f"the {len(copy.samples)} samples to keep",
        )
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
