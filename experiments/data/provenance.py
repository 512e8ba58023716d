"""Where a sample comes from, so that it can be found again outside of Lookout: key, shard, address and the like."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from experiments.data.caption_values import json_object
from experiments.data.damage import DecodeError
from experiments.data.row_columns import JSON, KNOWN, known_value
from experiments.data.row_data import RowData
from experiments.data.sample_ids import locate, shard_name
from experiments.data.shard_pairs import is_remote, local_path
from experiments.data.shards import Shards
from experiments.data.tables import Files
from experiments.data.tar_index import MAX_CAPTION_BYTES, number_members, read_samples, split_name
from experiments.data.tar_members import BrokenTar, Member
from experiments.runtime.safe_text import printable

COLUMNS = ("key", "shard", "url", "uid", "width", "height", "sha256")


def origins(data: Any, ids: np.ndarray) -> dict[str, list[Any]]:
    """COLUMNS of the samples `ids` (n,) of a data configuration, a list of n each; None where it is not known.

    key: name of the sample in its shard, or path of its file.  shard: file name of the shard.  url, uid, width,
    height, sha256: as img2dataset and DataComp note them beside the image.
    What lies in remote shards stays unknown: to know it means to read the shards once more.
    """
    found: dict[str, list[Any]] = {name: [None] * len(ids) for name in COLUMNS}
    if isinstance(data, RowData):
        return {**found, **data.known(ids)}
    if hasattr(data, "paths_of"):
        return {**found, "key": data.paths_of(ids)}
    if isinstance(data, Files):
        paths, _ = data.read_table()
        return {**found, "key": [paths[id] for id in ids]}
    if isinstance(data, Shards):
        _fill(found, data, ids)
    return found


def _fill(found: dict[str, list[Any]], data: Shards, ids: np.ndarray) -> None:
    names = data.urls
    number, position = locate(ids, names)
    for shard in np.unique(number).tolist():
        rows = np.flatnonzero(number == shard)
        for row in rows:
            found["shard"][row] = printable(shard_name(names[shard]))
        if is_remote(names[shard]):
            continue
        wanted = dict(zip(position[rows].tolist(), rows.tolist(), strict=True))
        if not os.path.exists(local_path(names[shard])):
            continue  # it is named in the list of damage
        with open(local_path(names[shard]), "rb") as stream:
            length = os.stat(stream.fileno()).st_size
            for at, (key, members) in enumerate(sample_members(stream, length)):
                if at in wanted:
                    found["key"][wanted[at]] = key
                    for name, value in _noted(stream, members).items():
                        found[name][wanted[at]] = value


def sample_key(name: str) -> str | None:
    """The key, printable, of the sample that a file of this name is of; None for a file that belongs to none."""
    parts = split_name(name)
    return None if parts is None else printable(parts[0])


def numbered_members(stream: BinaryIO, length: int) -> Iterator[tuple[int, str, Member]]:
    """The files and links of a shard: position of the sample, its key, printable, and the file; -1 and no key for
    what belongs to none. Ends where the tar is broken.
    """
    with contextlib.suppress(BrokenTar):
        for position, key, member in number_members(stream, length):
            yield position, printable(key), member


def sample_members(stream: BinaryIO, length: int) -> Iterator[tuple[str, list[Member]]]:
    """The samples of a shard, damaged ones too, in the order that their ids count: key, printable, and its files.

    Ends where the tar is broken.
    """
    with contextlib.suppress(BrokenTar):
        for sample in read_samples(stream, length):
            yield printable(sample.key), list(sample.members)


def _noted(stream: BinaryIO, members: list[Member]) -> dict[str, Any]:
    """What the sample's first `.json` says of it; nothing if that cannot be read."""
    for member in members:
        if member.name.lower().endswith(".json") and not member.problem and member.size <= MAX_CAPTION_BYTES:
            stream.seek(member.offset)
            try:
                fields = json_object(stream.read(member.size))
            except DecodeError:
                return {}
            return {name: known_value(name, fields, JSON) for name in KNOWN if name != "key"}
    return {}
