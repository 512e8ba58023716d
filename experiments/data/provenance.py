"""Where a sample comes from: its key, shard and address, so that it can be found again outside of Lookout."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from experiments.data.caption_values import json_value
from experiments.data.damage import DecodeError
from experiments.data.sample_ids import locate, shard_name
from experiments.data.shard_pairs import is_remote, local_path
from experiments.data.shards import Shards
from experiments.data.tables import Files
from experiments.data.tar_index import MAX_CAPTION_BYTES, number_members, read_samples, split_name
from experiments.data.tar_members import MAX_NAME, BrokenTar, Member
from experiments.runtime.safe_text import printable


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
    number, position = locate(ids, names)
    for shard in np.unique(number).tolist():
        rows = np.flatnonzero(number == shard)
        for row in rows:
            shards[row] = printable(shard_name(names[shard]))
        if is_remote(names[shard]):
            continue
        wanted = dict(zip(position[rows].tolist(), rows.tolist(), strict=True))
        if not os.path.exists(local_path(names[shard])):
            continue  # it is named in the list of damage
        with open(local_path(names[shard]), "rb") as stream:
            length = os.stat(stream.fileno()).st_size
            for at, (key, members) in enumerate(sample_members(stream, length)):
                if at in wanted:
                    keys[wanted[at]], urls[wanted[at]] = key, _url(stream, members)
    return Origins(keys, shards, urls)


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


def _url(stream: BinaryIO, members: list[Member]) -> str | None:
    for member in members:
        if member.name.lower().endswith(".json") and not member.problem and member.size <= MAX_CAPTION_BYTES:
            stream.seek(member.offset)
            try:
                url = json_value(stream.read(member.size), "url")
            except DecodeError:
                return None
            return printable(url)[:MAX_NAME] if isinstance(url, str) else None
    return None
