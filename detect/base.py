"""What every detector has in common, and what the local ones share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from detect.embeddings import DetectorInputs, Embeddings, with_index
from detect.paper_code import PaperCode
from detect.parameters import documented
from detect.search.neighbours import VERSION, Neighbours, NeighbourSearch, find_neighbours

# How to get the packages of the extra `detectors`, in a clone whose environment is .venv.
INSTALL = "install it with: .venv/bin/uv pip install -e '.[detectors]'"
CONVENTIONS = ("published", "paper_code")


@dataclass(frozen=True, kw_only=True)
class Detector(ABC):
    """Gives each sample a score; higher is more suspicious.

    `needs` names the inputs used beside image embeddings: text, captions, losses, encoder, images, views, drift,
    earlier.
    `norm_sensitive` says whether raw and unit-length embeddings give different scores, `collapses_beyond_k`
    whether scores collapse once more than k poisons share a scope. `packages` names further packages that the
    detector imports; they come with the extra `detectors`. `version` is raised when a change to the code changes
    scores, so that stored scores are not reused. `built_on` names the detectors whose code the score uses: raising
    the version of one of them is enough.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    norm_sensitive: ClassVar[bool] = False
    collapses_beyond_k: ClassVar[bool] = False
    packages: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1
    built_on: ClassVar[tuple[type[Detector], ...]] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.__doc__ = documented(cls)

    @classmethod
    def versions(cls) -> dict[str, int]:
        """Version of this detector and of each piece of code that its scores rest on, by name."""
        versions = {cls.__name__: cls.version}
        for part in cls.built_on:
            versions |= part.versions()
        return versions

    def score(self, x: Any) -> np.ndarray:
        """Scores (n,), float64, of DetectorInputs, Embeddings, or an (n, d) array or tensor of image embeddings.

        For a DataFrame of pandas (or a column of vectors) the scores are a Series with its index.
        Raises ValueError if inputs that the detector needs are missing.
        """
        inputs = DetectorInputs.of(x)
        for name in sorted(self.needs):
            holder = inputs.embeddings if name == "text" else inputs
            if getattr(holder, name) is None:
                raise ValueError(f"{type(self).__name__} needs {name}, and none was given")
        return with_index(x, np.asarray(self._score(inputs), dtype=np.float64), type(self).__name__)

    def score_among(self, x: Any, fitted: Any) -> np.ndarray:
        """Scores (m,) of new samples, each compared with the samples `fitted` alone: for `detect.Outliers`.

        Raises ValueError for a detector that can only score all samples together.
        """
        raise ValueError(f"{type(self).__name__} scores only the samples that it was fitted on, and these are new")

    @abstractmethod
    def _score(self, inputs: DetectorInputs) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class LocalDetector(Detector):
    """A detector that works on the table of nearest neighbours; see `detect.search.neighbours` for the scopes.

    convention: "published" is the definition of the paper named (DAO has three of them: its `form`); "paper_code"
        is what the CLIP paper's public code computes (docs/parity.md).
    """

    norm_sensitive: ClassVar[bool] = True
    min_k: ClassVar[int] = 1
    collapses_beyond_k: ClassVar[bool] = True

    k: int = 16
    scope: str = "full"
    batch_size: int = 2048
    modality: str = "image"
    normalise: bool = False
    convention: str = "published"
    backend: str = "auto"
    seed: int = 0
    memory_mb: int = 256
    reference_set: Any = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.k < self.min_k:
            raise ValueError(f"k must be at least {self.min_k} for {type(self).__name__}, got {self.k}")
        if self.reference_set is not None and self.scope != "reference":
            object.__setattr__(self, "scope", "reference")
        if self.convention not in CONVENTIONS:
            raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got {self.convention!r}")
        if self.convention == "paper_code":
            if type(self).paper_code_score is LocalDetector.paper_code_score:
                raise self._no_paper_code()
            if self.scope == "reference":
                raise ValueError("convention 'paper_code' needs scope full or batch, as in the public code")
            if self.modality not in ("image", "joint"):
                raise ValueError("convention 'paper_code' needs modality image or joint, as in the public code")
        _ = self.search  # refuses unknown settings

    @classmethod
    def versions(cls) -> dict[str, int]:
        return super().versions() | {"neighbours": VERSION}

    @property
    def definition(self) -> str:
        """One word for how the score is defined, for rows and tables: the convention, or something more exact."""
        return self.convention

    def scope_size(self, n: int) -> int | None:
        """Number of samples in a scope, if there are `n`; None where neighbours come from a reference set."""
        if self.scope == "reference":
            return None
        return min(n, self.batch_size) if self.scope == "batch" else n

    @property
    def search(self) -> NeighbourSearch:
        """All search settings except k. Detectors with equal settings share one table."""
        return NeighbourSearch(
            self.scope, self.batch_size, self.modality, self.normalise, self.backend, self.seed, self.memory_mb
        )

    @property
    def table_width(self) -> int:
        """Columns that the detector needs in the neighbour table: k. The public code needs one more, and another
        one in the joint modality, where the sample's own text is left out."""
        return self.k + (self.convention == "paper_code") * (1 + (self.modality == "joint"))

    def score(self, x: Any, neighbours: Neighbours | None = None) -> np.ndarray:
        """Scores (n,); for a DataFrame a Series with its index.

        neighbours: a table of `find_neighbours`, or another library's (`Neighbours.from_arrays`, `from_graph`);
            then no search is made.
        """
        if neighbours is not None:
            inputs = DetectorInputs.of(x)
            if len(neighbours.queries) != len(inputs.embeddings):
                raise ValueError(
                    f"the neighbour table must have a query per sample, {len(inputs.embeddings):,}, "
                    f"got {len(neighbours.queries):,}"
                )
            return with_index(x, self.score_neighbours(neighbours, inputs), type(self).__name__)
        return super().score(x)

    def score_among(self, x: Any, fitted: Any) -> np.ndarray:
        reference = fitted if self.reference_set is None else self.reference_set
        return replace(self, scope="reference", reference_set=reference).score(x)

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        embeddings: Embeddings = inputs.embeddings
        table = find_neighbours(embeddings, self.table_width, self.search, self.reference_set)
        return self.score_neighbours(table, inputs)

    def score_neighbours(self, neighbours: Neighbours, inputs: DetectorInputs | None = None) -> np.ndarray:
        """Scores (n,) from a neighbour table at least `table_width` wide, and the other inputs that are needed."""
        table = neighbours.at(self.table_width)
        if self.convention == "paper_code":
            size = len(table.queries)
            size = min(size, self.batch_size) if self.scope == "batch" else size
            code = PaperCode.of(table, self.k, size, self.modality == "joint")
            with np.errstate(divide="ignore", invalid="ignore"):
                return self.paper_code_score(code)
        return self.score_rows(table)[table.queries].astype(np.float64)

    @abstractmethod
    def score_rows(self, table: Neighbours) -> np.ndarray:
        """Score of every row of the table, (m,)."""

    def paper_code_score(self, code: PaperCode) -> np.ndarray:
        """Scores (n,) as the public code computes them; only for `convention: paper_code`."""
        raise self._no_paper_code()

    def _no_paper_code(self) -> ValueError:
        return ValueError(f"{type(self).__name__} has no convention 'paper_code': the public code lacks it")
