"""Agreement of two checkpoints: does a sample keep its neighbours while the model learns? Our own baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import LocalDetector
from detect.embeddings import DetectorInputs
from detect.search.neighbours import Neighbours, find_neighbours


@dataclass(frozen=True, kw_only=True)
class Agreement(LocalDetector):
    """1 - |N_k(x) & M_k(x)| / k, where M_k(x) are the neighbours of x by a model that was trained less.

    Both models search in the same scopes. A poison's embedding hangs on the trigger and on the true content of its
    image; the model trades one for the other while it learns the backdoor, so the neighbourhood moves. The overlap
    is a share of k: many samples have the same score.

    k: number of nearest neighbours, self excluded.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"earlier"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope == "reference":
            raise ValueError("Agreement compares two models of the same samples; scope must be full or batch")

    def score_neighbours(self, neighbours: Neighbours, inputs: DetectorInputs | None = None) -> np.ndarray:
        if inputs is None or inputs.earlier is None:
            raise ValueError("Agreement needs earlier beside the neighbour table: the embeddings of another model")
        if not np.array_equal(inputs.earlier.ids, inputs.embeddings.ids):
            raise ValueError("earlier must hold the same samples as the embeddings, in the same order")
        now = neighbours.at(self.k)
        then = find_neighbours(inputs.earlier, self.k, self.search)
        shared = [
            len(np.intersect1d(now.indices[row], then.indices[row], assume_unique=True)) for row in now.queries
        ]
        return 1 - np.array(shared, dtype=np.float64) / self.k

    def score_rows(self, table: Neighbours) -> np.ndarray:
        raise TypeError("Agreement has no score of one model's neighbour table alone")
