"""Batch normalisation over the global batch, so that N processes train as one does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.runtime import distributed


class GlobalBatchNorm(nn.BatchNorm2d):
    """nn.SyncBatchNorm for processes on CPUs, which torch's own does not serve.

    Mean and variance are taken over the rows of all processes, with their gradients. (b, c, h, w) -> same shape.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        from experiments.training.collectives import mean_of

        # Every process holds as many rows as any other, so the mean of their means is the whole's.
        whole = x.float()
        mean = mean_of(whole.mean(dim=(0, 2, 3)))
        centred = whole - mean.view(1, -1, 1, 1)
        variance = mean_of(centred.square().mean(dim=(0, 2, 3)))
        with torch.no_grad():
            count = x.numel() // x.shape[1] * distributed.world_size()
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean, momentum)  # type: ignore[union-attr]
            self.running_var.lerp_(variance * count / max(1, count - 1), momentum)  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)


def synchronise(network: nn.Module, device: str) -> nn.Module:
    """Replace batch normalisation by one over all processes; the names of the weights stay."""
    if device.startswith("cuda"):
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(network)
    for module in network.modules():
        if type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats:
            module.__class__ = GlobalBatchNorm
    return network
