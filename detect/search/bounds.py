"""What a neighbour search knows of its rows before it measures any, and the bound below which a row may be near.

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
    """Rows (b, c) that may be near b queries, and their A (b, c), ascending; None where they are taken on trust.

    rho: relative rounding error of A.  rounding_error: (b,) how far rounding moved each query.
    rounding_share: how far it moved the rows, at most, as a share of their norms.
    unreported: share of the work on these queries that the search's progress has not been told of.
    """

    rows: Tensor
    approximate: Tensor | None
    rho: float = 0.0
    rounding_error: Tensor | None = None
    rounding_share: float = 0.0
    unreported: float = 1.0


class PreparedRows:
    """Rows to search among. `progress` is called with the number of queries whose worth of work is done."""

    def __init__(self, base: Tensor, k: int, memory_mb: int, progress: Callable[[float], Any]) -> None:
        import torch

        self.base, self.k, self.d, self.progress = base, k, base.shape[1], progress
        self.floats = memory_mb * 2**18
        # Distances do not change when all rows move, and products are finest around the origin.
        sums = torch.stack([part.double().sum(0) for part in base.split(4096)])
        self.centre = (sums.sum(0) / len(base)).float()
        # Sums of d products, kept by the kernels in at least 8 accumulators; and the centring itself.
        self.eps = 2.0**-24 * (self.d / 8 + 16)

    @functools.cached_property
    def centred(self) -> Tensor:
        return self.base - self.centre

    @functools.cached_property
    def square(self) -> Tensor:
        return norms(self.centred).square_()

    def bound(self, norm: Tensor, kth_distance: Tensor, candidates: Candidates | None = None) -> Tensor:
        """The largest A that a row within `kth_distance` of a query may have, (b,); `norm`: the queries' distance
        from the centre. From float32 products, unless `candidates` says otherwise. Equation (4)."""
        farthest = norm + kth_distance
        eps = self.eps * (norm.square() + farthest.square())
        if candidates is None:
            return (kth_distance.square() + eps) * (1 + 1e-6)
        delta = farthest * candidates.rounding_share
        if candidates.rounding_error is not None:
            delta = delta + candidates.rounding_error
        return ((kth_distance + delta).square() + eps) / (1 - candidates.rho) * (1 + 1e-6)
