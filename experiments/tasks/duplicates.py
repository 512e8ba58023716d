"""Near-duplicate pictures among all samples: which of them are linked by a high cosine of their embeddings.

The links come from a table of nearest neighbours over all samples. A sample whose k nearest are all near-duplicates
may have more; it is compared with all samples, so that the groups are those that comparing every pair would give.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from detect import LocalDetector, Neighbours
from detect.search.candidates import APPROXIMATE
from detect.search.neighbours import NeighbourSearch
from experiments.pipeline.runner import Runner
from experiments.tasks.groups import Grouping
from experiments.tasks.samples import Samples

if TYPE_CHECKING:
    import pandas as pd

LARGEST = 20_000
"""Samples up to which all of them are searched for this alone, where the detectors search in batches."""
_K = 16
_ROWS = 256  # compared with a block of samples at a time
_COMPARED = 50_000  # rows whose neighbours a table does not all have; beyond these a group may be found in pieces
_SHOWN = 20


class Source(Protocol):
    """What is compared; `experiments.tasks.samples.Samples` is one."""

    def __len__(self) -> int: ...
    def vectors(self, kind: str, rows: np.ndarray) -> np.ndarray: ...
    def blocks(self, kind: str) -> Iterator[tuple[int, np.ndarray]]: ...


def table_over_all(runners: Sequence[Runner]) -> Neighbours | None:
    """Exact neighbours of all samples by unit-length embeddings; None where they were searched in parts.

    The table is that of a detector that searches so, or one of its own for up to LARGEST samples. All processes of
    a distributed run must enter.
    """
    runner = runners[0]
    if len(runners) > 1:
        return None
    for spec in runner.experiment.specs():
        detector = runner.experiment.detector(spec)
        if isinstance(detector, LocalDetector) and _suits(detector.search):
            width = runner.experiment.table_width(detector.search)
            return runner.value("neighbours", search=detector.search, k=width)
    n = len(runner.value("clean"))
    if not 2 <= n <= LARGEST:
        return None
    return runner.value("neighbours", search=NeighbourSearch(normalise=True), k=min(_K, n - 1))


def _suits(search: NeighbourSearch) -> bool:
    exact = search.backend not in APPROXIMATE
    return exact and search.normalise and search.scope == "full" and search.modality == "image"


def least_cosine(given: float, grouping: Grouping, samples: Samples) -> float:
    """The cosine from which pictures are near-duplicates: `given`, or higher where ordinary images lie nearer."""
    return max(given, replace(grouping, near_cosine=None, like_cosine=None).links(samples)[0])


def find_duplicates(
    samples: Samples, table: Neighbours | None, cosine: float, rows: pd.DataFrame
) -> tuple[np.ndarray, dict[str, Any]]:
    """(n,) number of each sample's group, 0: none, and what to report of the groups.

    table: see `duplicate_groups`; None: nothing is looked for.  rows: of the samples: id, key, rank.
    """
    if table is None:
        reason = (
            f"Near-duplicates were not looked for: the {len(samples):,} samples were searched in parts. "
            "neighbours.scope=full searches among all of them; task.duplicate_cosine=null says nothing about it."
        )
        return np.zeros(len(samples), np.int64), {"skipped": reason}
    groups = duplicate_groups(samples, table, cosine)
    where = [str(key or id) for key, id in zip(rows["key"], rows["id"], strict=True)]
    return groups, {"cosine": cosine, **describe(groups, samples.captions, rows["rank"].to_numpy(), where)}


def duplicate_groups(samples: Source, table: Neighbours, cosine: float) -> np.ndarray:
    """(n,) int64 number of the group that a sample is in, 1 for the largest; 0: it has no near-duplicate.

    table: of all samples, in their order, by unit-length embeddings.  cosine: from which two are linked.
    """
    near = 1 - np.square(table.distances, dtype=np.float64) / 2 >= cosine
    rows, places = np.nonzero(near)
    labels = _merged(len(samples), rows, np.asarray(table.indices)[rows, places])
    full = np.flatnonzero(near.all(axis=1))[:_COMPARED]
    for begin in range(0, len(full), _ROWS):
        mine = full[begin : begin + _ROWS]
        vectors, pairs = samples.vectors("image", mine), []
        for start, block in samples.blocks("image"):
            i, j = np.nonzero(vectors @ block.T >= cosine)
            pairs.append(np.unique(np.stack([labels[mine[i]], labels[start + j]]), axis=1))
        links = np.unique(np.concatenate(pairs, axis=1), axis=1)
        if (links[0] != links[1]).any():
            labels = _merged(len(samples), links[0], links[1])[labels]
    counts = np.bincount(labels, minlength=len(samples))
    largest_first = np.argsort(-counts, kind="stable")
    numbers = np.zeros(len(counts), np.int64)
    numbers[largest_first] = np.arange(1, len(counts) + 1)
    return np.where(counts[labels] > 1, numbers[labels], 0)


def describe(groups: np.ndarray, captions: Sequence[str], rank: np.ndarray, where: Sequence[str]) -> dict[str, Any]:
    """Counts, and of the largest groups: size, number of distinct captions, the most frequent ones, the best rank,
    and where (n texts) some of its members are."""
    sizes = np.bincount(groups)
    sizes[0] = 0
    order = np.argsort(groups, kind="stable")
    starts = np.searchsorted(groups[order], np.arange(1, min(len(sizes), _SHOWN + 1) + 1))
    rows = []
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        members = order[begin:end]
        counts = Counter(captions[row] for row in members)
        rows.append(
            {
                "size": len(members),
                "captions": len(counts),
                "leading": [f"{caption} ({count:,})" for caption, count in counts.most_common(3)],
                "rank": int(rank[members].min()),
                "examples": [where[row] for row in members[np.argsort(rank[members], kind="stable")][:3]],
            }
        )
    found = {"groups": int((sizes > 0).sum()), "samples": int((groups > 0).sum()), "of": len(groups)}
    return {**found, "rows": rows}


def _merged(n: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(n,) label of the connected component of each of n nodes, where `left` and `right` (m,) are linked."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(left), np.int8), (left, right)), shape=(n, n))
    return connected_components(graph, directed=False)[1].astype(np.int64)
