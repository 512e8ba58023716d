"""Pursuit: directions of the embedding space along which a small group stands apart. Our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector
from detect.embeddings import DetectorInputs, Embeddings
from detect.metrics import rank_share
from detect.multiscale import Multiscale
from detect.search.neighbours import Neighbours

ROWS = 20_000  # among which directions are sought
STARTS = 300  # random directions, of each size of group
STEPS = 6  # of each direction towards a group; most stand still after four
GROUPS = (0.002, 0.01, 0.03)  # sizes of the groups that directions are drawn to, as shares of the rows
TAILS = np.geomspace(0.001, 0.2, 40)  # sizes at which a group is cut off, as shares of the rows
SMALLEST = 20  # rows of a group or a tail
SHRINKAGE = 0.01  # of the mean variance, added to the variance of each axis
SAME = 0.9  # cosine beyond which two random directions are one
TAKEN, APART = 3, 0.7  # directions that count, and the largest cosine of two of these
CERTAIN = 40  # evidence from which on a direction counts in full; without a backdoor it is about 10 to 20


@dataclass(frozen=True, kw_only=True)
class Pursuit(Multiscale):
    """The cubic mean of two surprises: by local density, and by the sample's place along three directions.

    A backdoor gives its poisons something in common that no other sample has. In the whitened space of the
    embeddings they all lie far out along one direction, even where their density is not low (docs/detectors.md).
    Directions are found by projection pursuit (Friedman and Tukey 1974, with another index): a direction moves to
    the mean of the samples that lie furthest along it, again and again. It starts at a random sample, or at the
    mean of those that `Multiscale` ranks highest. The evidence for a direction is the product of two numbers:

    - how far a group at its end stands apart, which is the difference of the means of the group and of the others
      over the root of the mean of both variances, as a robust z-score among the random directions;
    - the mean surprise of the group's members by Multiscale, -ln(1 - rank share).

    Along each of the three directions with the most evidence a sample has a z-score against those outside the
    group, and a surprise -ln(1 - Phi(z)). The largest of these counts, and less so where the evidence is weak.

    k, narrow: the wide and the narrow number of neighbours of Multiscale, self excluded.
    """

    built_on: ClassVar[tuple[type[Detector], ...]] = (Multiscale,)

    def score_neighbours(self, neighbours: Neighbours, inputs: DetectorInputs | None = None) -> np.ndarray:
        if inputs is None:
            raise ValueError(f"{type(self).__name__} needs the embeddings beside the neighbour table")
        signs = [surprise(sign) for sign in self.signs(neighbours, inputs)]
        embeddings = inputs.embeddings.normalised() if self.normalise else inputs.embeddings
        parts = [*signs, along_directions(self._vectors(embeddings), embeddings.ids, signs, self.seed)]
        return np.cbrt(np.mean([part**3 for part in parts], axis=0))

    def signs(self, neighbours: Neighbours, inputs: DetectorInputs) -> list[np.ndarray]:
        """Scores (n,) that guide the choice of a direction and count beside it."""
        return [Multiscale(k=self.k, narrow=self.narrow).score_neighbours(neighbours)]

    def _vectors(self, embeddings: Embeddings) -> np.ndarray:
        if self.modality == "text" and embeddings.text is not None:
            return embeddings.text
        if self.modality == "pair" and embeddings.text is not None:
            return np.hstack([embeddings.image, embeddings.text])
        return embeddings.image

    def score_rows(self, table: Neighbours) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} has no score of reference rows")


def surprise(scores: np.ndarray) -> np.ndarray:
    """-ln(1 - rank share), (n,): 1 in the mean of all samples, ln(2n) for the most suspicious one."""
    return -np.log1p(-rank_share(scores))


@dataclass(frozen=True)
class Direction:
    """vector: (d,) of the whitened space.  size: rows in the group at its end.  evidence: see `Pursuit`."""

    vector: np.ndarray
    size: int
    evidence: float


def along_directions(x: np.ndarray, ids: np.ndarray, signs: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Surprise (n,) of each sample's place along the directions with the most evidence.

    x: (n, d) embeddings.  ids: (n,); the order of the rows makes no difference.  signs: surprises (n,) that guide
    the search.
    """
    from scipy.stats import norm

    rng = np.random.default_rng(seed)
    rows = np.argsort(ids)[np.sort(rng.permutation(len(x))[:ROWS])]
    centre, whitening = _whitening(x[rows])
    z = (x[rows] - centre) @ whitening
    surprises = np.zeros(len(x))
    for direction in best_directions(z, [sign[rows] for sign in signs], rng):
        others = np.sort(z @ direction.vector)[: len(rows) - direction.size]
        axis = whitening @ direction.vector
        place = np.concatenate([(x[i : i + ROWS] - centre) @ axis for i in range(0, len(x), ROWS)])
        certainty = min(max(direction.evidence, 0) / CERTAIN, 1) ** 2
        found = -norm.logsf((place - others.mean()) / max(others.std(), 1e-9)) * certainty
        surprises = np.maximum(surprises, found)
    return surprises


def _whitening(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) of x, and the matrix (d, d) after which each axis has variance 1, or less if it had hardly any."""
    centre = x.mean(axis=0, dtype=np.float64)
    variances, axes = np.linalg.eigh(np.atleast_2d(np.cov(x - centre, rowvar=False)))
    variances = np.maximum(variances, 0)
    return centre, axes / np.sqrt(variances + max(SHRINKAGE * variances.mean(), 1e-30))


def best_directions(z: np.ndarray, signs: Sequence[np.ndarray], rng: np.random.Generator) -> list[Direction]:
    """The directions with the most evidence among the rows of z, (n, d), whitened.  signs: surprises (n,)."""
    half = max(len(z) // 2, 1)
    sizes = np.unique(np.clip((TAILS * len(z)).astype(int), min(SMALLEST, half), half))
    found = []
    for share in GROUPS:
        group = min(max(int(share * len(z)), SMALLEST), half)
        random = climb(z, z[rng.choice(len(z), min(STARTS, len(z)), replace=False)], group)
        random = random[_distinct(random)]
        guided = climb(z, np.stack([z[_highest(sign, group)].mean(axis=0) for sign in signs]), group)
        vectors = np.concatenate([random, guided])
        places = vectors @ z.T  # (directions, n)
        apart = separations(places, sizes)  # (directions, sizes)
        middle = np.median(apart[: len(random)], axis=0)
        spread = 1.4826 * np.median(np.abs(apart[: len(random)] - middle), axis=0)
        unusual = (apart - middle) / np.maximum(spread, 1e-9)
        for vector, place, of_sizes in zip(vectors, places, unusual, strict=True):
            size = int(sizes[np.argmax(of_sizes)])
            members = _highest(place, size)
            surprising = max(sign[members].mean() for sign in signs)
            found.append(Direction(vector, size, float(of_sizes.max() * surprising)))
    best: list[Direction] = []
    for direction in sorted(found, key=lambda direction: -direction.evidence):
        if len(best) < TAKEN and all(direction.vector @ other.vector < APART for other in best):
            best.append(direction)
    return best


def climb(z: np.ndarray, directions: np.ndarray, group: int) -> np.ndarray:
    """Move each direction (s, d) to the mean of the `group` rows of z (n, d) furthest along it, STEPS times."""
    for _ in range(STEPS):
        places = directions @ z.T  # (s, n)
        edge = np.partition(places, -group, axis=1)[:, -group, None]
        directions = (places >= edge).astype(z.dtype) @ z
        directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-30)
    return directions


def separations(places: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Difference of means over the root of the mean variance, between each row's largest places and its others.

    places: (s, n).  sizes: (t,), how many count as the largest.  Returns (s, t).
    """
    n = places.shape[1]
    ordered = -np.sort(-places, axis=1)
    sums, squares = np.cumsum(ordered, axis=1), np.cumsum(ordered**2, axis=1)
    inside, outside = sums[:, sizes - 1] / sizes, (sums[:, -1:] - sums[:, sizes - 1]) / (n - sizes)
    spread = squares[:, sizes - 1] / sizes - inside**2
    spread = spread + (squares[:, -1:] - squares[:, sizes - 1]) / (n - sizes) - outside**2
    return (inside - outside) / np.sqrt(np.maximum(spread / 2, 1e-12))


def _highest(values: np.ndarray, count: int) -> np.ndarray:
    return np.argpartition(values, -count)[-count:]


def _distinct(directions: np.ndarray) -> list[int]:
    """The first of each set of directions that are almost the same."""
    kept: list[int] = []
    for i, direction in enumerate(directions):
        if not kept or (directions[kept] @ direction).max() < SAME:
            kept.append(i)
    return kept
