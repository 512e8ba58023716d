"""What every detector has in common, and what the local ones share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from detect.embeddings import Embeddings, Evidence
from detect.neighbours import Neighbours, NeighbourSearch, find_neighbours
from detect.parity import PublicCode

CONVENTIONS = ("published", "reference")


@dataclass(frozen=True, kw_only=True)
class Detector(ABC):
    """Gives each sample a score; higher is more suspicious.

    `needs` names the evidence used beside image embeddings: text, captions, losses, encoder, images, views.
    `uses_length` says whether raw and unit-length embeddings give different scores, `crowds`
    whether scores collapse once more than k poisons share a scope. `version` is raised when a change to the code
    gives other scores, so that those in a store are not taken for new ones.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    uses_length: ClassVar[bool] = False
    crowds: ClassVar[bool] = False
    version: ClassVar[int] = 1

    def score(self, x: Any) -> np.ndarray:
        """Scores (n,), float64, of Evidence, Embeddings, or an (n, d) array or tensor of image embeddings.

        Raises ValueError if evidence that the detector needs is missing.
        """
        evidence = Evidence.of(x)
        for name in sorted(self.needs):
            holder = evidence.embeddings if name == "text" else evidence
            if getattr(holder, name) is None:
                raise ValueError(f"{type(self).__name__} needs {name}, and none was given")
        return np.asarray(self._score(evidence), dtype=np.float64)

    @abstractmethod
    def _score(self, evidence: Evidence) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class LocalDetector(Detector):
    """A detector that works on the table of nearest neighbours; see `detect.neighbours` for the scopes.

    k: number of neighbours, self excluded.  convention: "published" is the definition of the paper named;
    "reference" reproduces the numbers of the CLIP paper's public code (see `detect.parity`).
    """

    uses_length: ClassVar[bool] = True
    smallest_k: ClassVar[int] = 1
    crowds: ClassVar[bool] = True

    k: int = 16
    scope: str = "full"
    batch_size: int = 2048
    modality: str = "image"
    normalise: bool = False
    convention: str = "published"
    backend: str = "auto"
    seed: int = 0
    memory_mb: int = 256
    reference: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.k < self.smallest_k:
            raise ValueError(f"k must be at least {self.smallest_k} for {type(self).__name__}, got {self.k}")
        if self.reference is not None and self.scope != "reference":
            object.__setattr__(self, "scope", "reference")
        if self.convention not in CONVENTIONS:
            raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got {self.convention!r}")
        if self.convention == "reference":
            if type(self).public is LocalDetector.public:
                raise self._not_public()
            if self.scope == "reference":
                raise ValueError("convention 'reference' needs scope full or batch, as in the public code")
        _ = self.search  # refuses what it does not know

    @property
    def search(self) -> NeighbourSearch:
        """Everything but k, so that detectors that search alike share one table."""
        return NeighbourSearch(
            self.scope, self.batch_size, self.modality, self.normalise, self.backend, self.seed, self.memory_mb
        )

    @property
    def table_k(self) -> int:
        """How wide a neighbour table the detector needs: the public code looks one neighbour further, and in the
        joint modality leaves out the sample's own text."""
        return self.k + (self.convention == "reference") * (1 + (self.modality == "joint"))

    def score(self, x: Any, neighbours: Neighbours | None = None) -> np.ndarray:
        """Scores (n,); with `neighbours`, a table of `find_neighbours`, nothing is searched."""
        if neighbours is not None:
            return self.score_neighbours(neighbours, Evidence.of(x))
        return super().score(x)

    def _score(self, evidence: Evidence) -> np.ndarray:
        embeddings: Embeddings = evidence.embeddings
        table = find_neighbours(embeddings, self.table_k, self.search, self.reference)
        return self.score_neighbours(table, evidence)

    def score_neighbours(self, neighbours: Neighbours, evidence: Evidence | None = None) -> np.ndarray:
        """Scores (n,) from a neighbour table at least `table_k` wide, and what else the detector needs to see."""
        table = neighbours.at(self.table_k)
        if self.convention == "reference":
            size = len(table.queries)
            size = min(size, self.batch_size) if self.scope == "batch" else size
            code = PublicCode.of(table, self.k, size, self.modality == "joint")
            with np.errstate(divide="ignore", invalid="ignore"):
                return self.public(code)
        return self.rows(table)[table.queries].astype(np.float64)

    @abstractmethod
    def rows(self, table: Neighbours) -> np.ndarray:
        """Score of every row of the table, (m,)."""

    def public(self, code: PublicCode) -> np.ndarray:
        """Scores (n,) as the public code computes them; only for `convention: reference`."""
        raise self._not_public()

    def _not_public(self) -> ValueError:
        return ValueError(f"{type(self).__name__} has no convention 'reference': the public code lacks it")
