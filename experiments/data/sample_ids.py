"""Ids of the samples of shards, which stay when shards are added, left out, reordered or moved to another folder.

An id has 63 bits: 43 of a hash of the shard's file name, 20 of the sample's position in the shard. Of shards with
the same file name, in different folders, the first in the list has that id, and the others have one by their number
among them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from experiments.data.shard_pairs import is_remote

POSITIONS = 1 << 20
"""Samples that one shard may hold."""
_HASH_BITS = 43


def shard_name(url: str) -> str:
    """File name of a shard; a web address loses its query, which may be a signature."""
    if is_remote(url) and url.startswith("http"):
        url = url.split("?", 1)[0]
    return url.rsplit("/", 1)[-1]


def first_ids(urls: Sequence[str], option: str = "data.shards") -> np.ndarray:
    """(s,) int64 id of position 0 in each shard; a ValueError if two names have the same hash.

    option: which names the shards, for the message.
    """
    seen: Counter[str] = Counter()
    owners: dict[int, str] = {}
    for url in urls:
        name = shard_name(url)
        repeated = f"{name}/{seen[name]}" if seen[name] else name  # no file's name has a slash
        seen[name] += 1
        digest = hashlib.blake2b(repeated.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        first = (int.from_bytes(digest, "big") >> (64 - _HASH_BITS)) * POSITIONS
        if first in owners:
            raise ValueError(f"{option}: {owners[first]} and {url} would have the same sample ids; rename one")
        owners[first] = url
    return np.array(list(owners), dtype=np.int64)


def locate(ids: np.ndarray, urls: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) number of the shard and (n,) position in it of each id; a ValueError for ids of other shards."""
    ids, firsts = np.asarray(ids, np.int64), first_ids(urls)
    order = np.argsort(firsts)
    position = ids % POSITIONS
    place = np.searchsorted(firsts[order], ids - position)
    known = place < len(firsts)
    known[known] = firsts[order][place[known]] == (ids - position)[known]
    if not known.all():
        raise ValueError(f"{(~known).sum():,} sample ids belong to none of the shards, such as {ids[~known][0]}")
    return order[place], position
