"""What is known before distances are measured: norms, rounding errors, the bound on near rows' product form.

Equation numbers are those of docs/search.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def norms(x: Tensor) -> Tensor:
    """Euclidean norm of each row, (b, d) -> (b,)."""
    import torch

    return torch.linalg.vector_norm(x, dim=1)


@dataclass
class Candidates:
    """Candidate neighbours of b queries: rows (b, c), and their A (b, c) by equation (1), ascending.

    approximate: A, or None for an approximate index, whose candidates are not checked for completeness.
    rho: relative rounding error of A, equation (3).
    rounding_error: (b,) how far rounding moved each query; rounding_share: the most that it moved any row, divided
        by the row's norm. Both make up delta, equation (2).
    unreported: share of the work on these queries that was not reported as progress yet.
    """

    rows: Tensor
    approximate: Tensor | None
    rho: float = 0.0
    rounding_error: Tensor | None = None
    rounding_share: float = 0.0
    unreported: float = 1.0


class PreparedRows:
    """Rows to search among, their centre, and the rounding error of products between them.

    base: (n, d) float32.  floats: float32 numbers within the memory bound.
    progress: called with the number of queries that were answered since the last call; may be a fraction.
    """

    def __init__(self, base: Tensor, k: int, memory_mb: int, progress: Callable[[float], Any]) -> None:
        import torch

        self.base, self.k, self.d, self.progress = base, k, base.shape[1], progress
        self.floats = memory_mb * 2**18
        # A shift of all rows changes no distance, and products are most precise around the origin.
        sums = torch.stack([block.double().sum(0) for block in base.split(4096)])
        self.centre = (sums.sum(0) / len(base)).float()
        self.eps = 2.0**-24 * (self.d / 8 + 16)  # for sums of d products and for the shift: equation (3)

    @functools.cached_property
    def centred(self) -> Tensor:
        """Rows about the centre, (n, d)."""
        return self.base - self.centre

    @functools.cached_property
    def square(self) -> Tensor:
        """Squared norms of the centred rows, (n,)."""
        return norms(self.centred).square_()

    def bound(self, norm: Tensor, kth_distance: Tensor, candidates: Candidates | None = None) -> Tensor:
        """The largest A that a row within `kth_distance` of a query may have: equation (4), (b,).

        norm: (b,) of the queries about the centre.  candidates: how A was rounded; None for float32 products.
        """
        farthest = norm + kth_distance  # norm of the row, at most
        eps = self.eps * (norm.square() + farthest.square())
        if candidates is None:
            return (kth_distance.square() + eps) * (1 + 1e-6)
        delta = farthest * candidates.rounding_share
        if candidates.rounding_error is not None:
            delta = delta + candidates.rounding_error
        return ((kth_distance + delta).square() + eps) / (1 - candidates.rho) * (1 + 1e-6)
