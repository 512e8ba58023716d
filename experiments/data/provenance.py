"""Where a sample comes from: its key, shard and address, so that it can be found again outside of Lookout."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from experiments.data.shard_pairs import is_remote, local_path
from experiments.data.shards import IDS_PER_SHARD, Shards
from experiments.data.tables import Files
from experiments.data.tar_index import BrokenTar, Member, read_members


@dataclass(frozen=True)
class Origins:
    """Columns of n entries, None where it is not known.

    keys: name of the sample in its shard, or path of its file.  shards: file name of the shard.
    urls: where the image was fetched from, as img2dataset notes it.
    """

    keys: list[str | None]
    shards: list[str | None]
    urls: list[str | None]


def origins(data: Any, ids: np.ndarray) -> Origins:
    """Origins of the samples `ids` (n,) of a data configuration.

    Keys and addresses of samples in remote shards stay unknown: to know them means to read the shards once more.
    """
    nothing: list[str | None] = [None] * len(ids)
    if isinstance(data, Files):
        paths, _ = data.read_table()
        return Origins([paths[id] for id in ids], nothing, list(nothing))
    if not isinstance(data, Shards):
        return Origins(nothing, list(nothing), list(nothing))
    keys, shards, urls = list(nothing), list(nothing), list(nothing)
    names = data.urls
    number, position = np.divmod(np.asarray(ids), IDS_PER_SHARD)
    for shard in np.unique(number).tolist():
        rows = np.flatnonzero(number == shard)
        for row in rows:
            shards[row] = names[shard].rsplit("/", 1)[-1]
        if is_remote(names[shard]):
            continue
        wanted = dict(zip(position[rows].tolist(), rows.tolist(), strict=True))
        with open(local_path(names[shard]), "rb") as stream:
            length = os.stat(stream.fileno()).st_size
            for at, (key, members) in enumerate(sample_members(stream, length)):
                if at in wanted:
                    keys[wanted[at]], urls[wanted[at]] = key, _url(stream, members)
    return Origins(keys, shards, urls)


def sample_members(stream: BinaryIO, length: int) -> Iterator[tuple[str, list[Member]]]:
    """The samples of a shard, damaged ones too, in the order that their ids count: key, and its files.

    Ends where the tar is broken.
    """
    key, members = None, []  # type: str | None, list[Member]
    try:
        for member in read_members(stream, length):
            folder, _, base = member.name.rpartition("/")
            stem, _, ending = base.partition(".")
            if not stem or not ending:
                continue
            name = f"{folder}/{stem}" if folder else stem
            if name != key:
                if key is not None:
                    yield key, members
                key, members = name, []
            members.append(member)
    except BrokenTar:
        pass
    if key is not None:
        yield key, members


def _url(stream: BinaryIO, members: list[Member]) -> str | None:
    for member in members:
        if member.name.lower().endswith(".json"):
            stream.seek(member.offset)
            try:
                url = json.loads(stream.read(member.size)).get("url")
            except (ValueError, AttributeError):
                return None
            return None if url is None else str(url)
    return None
