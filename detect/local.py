"""Quantities of a neighbour table that several detectors share; all in float64."""

from __future__ import annotations

import numpy as np

from detect.search.neighbours import Neighbours

LARGEST_LID = 1e6  # where all neighbours are equally far the estimate is unbounded


def floor(table: Neighbours) -> float:
    """The smallest non-zero distance of the table, which replaces distances of 0.

    So a group of duplicates is as dense as the closest pair of different samples. Scores stay finite, and do not
    depend on the scale of the embeddings. 1 if all distances are 0.
    """
    positive = table.distances[table.distances > 0]
    return float(positive.min()) if len(positive) else 1.0


def floored(table: Neighbours) -> np.ndarray:
    """Distances, (m, k), none of them 0."""
    return np.maximum(table.distances.astype(np.float64), floor(table))


def k_distance(table: Neighbours) -> np.ndarray:
    """kd(x) = r_k(x), (m,), none of them 0."""
    return np.maximum(table.distances[:, -1].astype(np.float64), floor(table))


def lid(table: Neighbours) -> np.ndarray:
    """Local intrinsic dimensionality by maximum likelihood, (m,): -1 / mean over i <= k of ln(r_i / r_k).

    Amsaleg et al. 2015. At most LARGEST_LID; a row of duplicates (all distances 0) has dimension 0.
    """
    logs = np.log(floored(table))
    mean = (logs - logs[:, -1:]).mean(axis=1)
    return np.where(table.distances[:, -1] > 0, -1 / np.minimum(mean, -1 / LARGEST_LID), 0.0)
