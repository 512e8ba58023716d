"""The sides of `experiments.bench.peers`: each gives the scores of a detector, with k = 16.

No other package has SLOF and DAO. There, the others find the neighbours, and the definitions follow in NumPy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from experiments.bench.report import Note

K = 16
OURS = "ours"
Table = tuple[np.ndarray, np.ndarray]  # distances (n, K) and rows (n, K)


class Score(Protocol):
    """Points (n, d) -> scores (n,); batch: rows of a neighbourhood scope, None for all."""

    def __call__(self, x: np.ndarray, batch: int | None) -> np.ndarray: ...


# --- ours -------------------------------------------------------------------------------------------------------


def _ours(detector: str) -> Score:
    import detect

    kinds: dict[str, Any] = {"k-dist": detect.KDistance, "LOF": detect.LOF, "SLOF": detect.SLOF, "DAO": detect.DAO}
    kind = kinds[detector]

    def score(x: np.ndarray, batch: int | None) -> np.ndarray:
        if batch is None:
            return kind(k=K).score(x)
        return kind(k=K, scope="batch", batch_size=batch).score(x)

    return score


# --- the others -------------------------------------------------------------------------------------------------


def _by_batches(score: Callable[[np.ndarray], np.ndarray]) -> Score:
    """Batch after batch; which rows are in a batch, and that a short last one is filled up, is as in ours."""

    def whole(x: np.ndarray, batch: int | None) -> np.ndarray:
        if batch is None:
            return score(x)
        from detect.search.neighbours import batch_rows

        found = np.empty(len(x))
        for rows, queries in batch_rows(len(x), batch, 0):
            found[rows[:queries]] = score(x[rows])[:queries]
        return found

    return whole


def _faiss(x: np.ndarray) -> Table:
    import faiss

    squares, rows = faiss.knn(x, x, K + 1)
    distances: np.ndarray = np.sqrt(np.maximum(squares, 0))
    return distances[:, 1:], rows[:, 1:]  # the first is the row itself, but for equal rows


def _scikit_learn(package: str, x: np.ndarray) -> Table:
    found: Table = _neighbors(package).NearestNeighbors(n_neighbors=K).fit(x).kneighbors()
    return found


def _neighbors(package: str) -> Any:
    """`sklearn.neighbors`, or the one of scikit-learn-intelex."""
    import importlib

    return importlib.import_module(f"{package}.neighbors")


def _packaged_lof(package: str, x: np.ndarray) -> np.ndarray:
    model = _neighbors(package).LocalOutlierFactor(n_neighbors=K).fit(x)
    scores: np.ndarray = -model.negative_outlier_factor_
    return scores


def _pyod(detector: str, x: np.ndarray) -> np.ndarray:
    import importlib

    model = getattr(importlib.import_module(f"pyod.models.{detector.lower()}"), detector)(n_neighbors=K)
    scores: np.ndarray = model.fit(x).decision_scores_
    return scores


# --- the definitions, from a table ------------------------------------------------------------------------------


def _k_dist(table: Table) -> np.ndarray:
    return table[0][:, -1]


def _lof(table: Table) -> np.ndarray:
    distances, rows = table
    reach = np.maximum(distances, distances[rows, -1])
    density = 1 / reach.mean(axis=1)
    return density[rows].mean(axis=1) / density


def _slof(table: Table) -> np.ndarray:
    distances, rows = table
    return (distances[:, -1:] / distances[rows, -1]).mean(axis=1)


def _dao(table: Table) -> np.ndarray:
    distances, rows = table
    dimension = -1 / np.log(distances / distances[:, -1:]).mean(axis=1)
    return (dimension[rows] * np.log(distances[:, -1:] / distances[rows, -1])).mean(axis=1)


FORMULAS = {"k-dist": _k_dist, "LOF": _lof, "SLOF": _slof, "DAO": _dao}


# --- which sides a detector has ---------------------------------------------------------------------------------

PACKAGES = {  # name -> what is imported, what installs it
    "scikit-learn": ("sklearn", "scikit-learn"),
    "scikit-learn-intelex": ("sklearnex", "scikit-learn-intelex"),
    "PyOD": ("pyod", "pyod"),
    "faiss": ("faiss", "faiss-cpu"),
}


def missing() -> Iterator[Note]:
    """A line for each package that is not installed."""
    for name, (imported, installed) in PACKAGES.items():
        if find_spec(imported) is None:
            yield Note(name, f"left out: it is not installed (pip install {installed})")


def _from_table(search: Callable[[np.ndarray], Table], detector: str) -> Score:
    return _by_batches(lambda x: FORMULAS[detector](search(x)))


def _side(detector: str, name: str) -> Score | None:
    """None where the package is not installed."""
    if name == OURS:
        return _ours(detector)
    imported = PACKAGES[name][0]
    if find_spec(imported) is None:
        return None
    if name == "faiss":
        return _from_table(_faiss, detector)
    if name == "PyOD":
        return _by_batches(functools.partial(_pyod, "KNN" if detector == "k-dist" else "LOF"))
    if detector == "LOF":
        return _by_batches(functools.partial(_packaged_lof, imported))
    return _from_table(functools.partial(_scikit_learn, imported), detector)


def _sides(detector: str) -> dict[str, Callable[[], Score | None]]:
    names = [OURS, *(name for name in PACKAGES if name != "PyOD" or detector in ("k-dist", "LOF"))]
    return {name: functools.partial(_side, detector, name) for name in names}


SIDES = {detector: _sides(detector) for detector in ("LOF", "k-dist", "SLOF", "DAO")}
