"""What the public code of the CLIP paper computes (`convention: paper_code`); docs/parity.md says what differs.

Huang, Erfani, Li, Ma, Bailey, ICLR 2025; github.com/HanxunH/Detect-CLIP-Backdoor-Samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detect.search.neighbours import Neighbours

INSIDE_LOGARITHM = 1e-4
NOT_A_NUMBER = 1000.0  # stands for infinite scores, and for 0 / 0


@dataclass(frozen=True)
class PaperCode:
    """Neighbourhoods as the public code computes them.

    radii: (n, k + 1), ascending, of the samples.  others: (m, k), ascending, of all rows of the table.
    rows: (n, k), the table rows that are looked up for the samples' neighbours: numbered in a list without the
        sample (joint: images, then texts, without the sample's own), but looked up in a list of all.
    """

    radii: np.ndarray
    rows: np.ndarray
    others: np.ndarray

    @classmethod
    def of(cls, table: Neighbours, k: int, size: int, joint: bool) -> PaperCode:
        """size: samples per scope; the table must be k + 1 wide, k + 2 if joint."""
        block = size * (1 + joint)
        if len(table.distances) % block:
            raise ValueError(f"a table of {len(table.distances)} rows does not hold scopes of {block} rows each")
        radii, near = table.distances[table.queries], table.indices[table.queries]  # (n, k + 1 or 2)
        place = (table.queries % block)[:, None]  # of the sample in its scope
        start = table.queries[:, None] - place
        near = near - start
        if joint:
            kept = (near == place + size).argsort(axis=1, kind="stable")[
                :, : k + 1
            ]  # its own text last, so cut off
            radii, near = np.take_along_axis(radii, kept, 1), np.take_along_axis(near, kept, 1)
        column = np.where(near < size, near - (near > place), near - 1 - (near - size > place))
        return cls(radii.astype(np.float64), start + column[:, :k], table.distances[:, :k].astype(np.float64))

    def radius(self) -> np.ndarray:
        """The samples' k-distance, (n,)."""
        return self.radii[:, -1]

    def radius_of_neighbours(self) -> np.ndarray:
        """(n, k)."""
        return self.others[self.rows, -1]

    def dimension(self) -> np.ndarray:
        """The samples' dimension, (n,); 0 where all distances are 0, which is NaN in the public code."""
        return _dimension(self.radii)

    def dimension_of_neighbours(self) -> np.ndarray:
        """(n, k)."""
        with_self = np.pad(self.others, ((0, 0), (1, 0)))
        return _dimension(with_self)[self.rows]


def _dimension(radii: np.ndarray) -> np.ndarray:
    """(m, k + 1) -> (m,)."""
    last = radii[:, -1:]
    logs = np.log(radii[:, :-1] / np.where(last > 0, last, 1) + INSIDE_LOGARITHM)
    return np.where(last[:, 0] > 0, -logs.shape[1] / logs.sum(axis=1), 0.0)


def mean_or_limit(values: np.ndarray) -> np.ndarray:
    """Means of (n, k), finite as the public code makes them."""
    return np.nan_to_num(values.mean(axis=1), nan=NOT_A_NUMBER, posinf=NOT_A_NUMBER, neginf=0.0)
