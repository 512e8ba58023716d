"""Collective operations that gradients flow through; for more than one process only.

`torch.distributed.nn.functional` has them too, but torch 2.15 deprecates it (with a warning in each process) in
favour of functions of a private module; so this module has its own, made from `torch.distributed` alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from experiments.runtime import distributed


class _Sum(torch.autograd.Function):
    """all_reduce, whose gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        whole = part.clone()
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].clone()
        dist.all_reduce(whole)
        return whole


class _Rows(torch.autograd.Function):
    """all_gather with interleaved rows; each process takes its rows of the summed gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        parts = [torch.empty_like(part) for _ in range(distributed.world_size())]
        dist.all_gather(parts, part)
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        whole = gradients[0].clone()
        dist.all_reduce(whole)
        return whole[distributed.rank() :: distributed.world_size()]


def mean_of(part: Tensor) -> Tensor:
    """Mean of `part` over the processes; its gradient is summed over what each of them does with the mean."""
    return _Sum.apply(part) / distributed.world_size()


def rows_of(part: Tensor) -> Tensor:
    """(b, ...) of every process -> (b * processes, ...), row i from process i modulo their number."""
    return _Rows.apply(part.contiguous())
