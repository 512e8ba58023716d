"""A small convolutional image tower for CLIP on a laptop: about 2 M parameters at 32 x 32 pixels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Convolution(nn.Conv2d):
    """A 3 x 3 convolution without bias, padded by 1.

    On a map of 2 x 2 each output sees each input, so it is a single product with a dense matrix, which a CPU
    computes about twice as fast, backward pass included.
    """

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__(inside, outside, 3, stride, 1, bias=False)
        # For each output (p, q) of a 2 x 2 map and each input (u, v): the tap between them.
        pairs = [3 * (u - p + 1) + v - q + 1 for p, q, u, v in itertools.product((0, 1), repeat=4)]
        self.register_buffer("pairs", torch.tensor(pairs), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (2, 2) or self.stride != (1, 1) or x.device.type != "cpu":
            return super().forward(x)
        taps = self.weight.permute(0, 2, 3, 1).flatten(1, 2)  # (outside, 9, inside)
        dense = taps.index_select(1, self.pairs).view(4 * self.out_channels, 4 * self.in_channels)
        y = functional.linear(x.permute(0, 2, 3, 1).flatten(1), dense)  # (b, 4 outside)
        return y.view(len(x), self.out_channels, 2, 2).contiguous(memory_format=torch.channels_last)


def _convolution(inside: int, outside: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Convolution(inside, outside, stride), nn.BatchNorm2d(outside), nn.ReLU(inplace=True))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width, 1)
        self.second = nn.Sequential(Convolution(width, width), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


class ConvTower(nn.Module):
    """Strided convolutions, two residual blocks, maximum and average pool side by side, LayerNorm, projection.

    The maximum pool responds to a small patch, the average pool to a change of the whole picture. The LayerNorm
    equalises norms, so that the norm alone does not reveal poisoned images.

    Input (b, 3, size, size), output (b, d).
    """

    def __init__(self, embed_dim: int, size: int, widths: Sequence[int] = (16, 32, 64, 128, 192)) -> None:
        super().__init__()
        self.image_size = (size, size)
        steps = [_convolution(3, widths[0], 1)]  # at full resolution, or it misses a finely dotted patch
        steps += [_convolution(a, b, 2) for a, b in itertools.pairwise(widths)]
        self.body = nn.Sequential(*steps, Residual(widths[-1]), Residual(widths[-1]))
        self.norm = nn.LayerNorm(2 * widths[-1])
        self.projection = nn.Linear(2 * widths[-1], embed_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)  # (b, w, h, h)
        pooled = torch.cat([x.amax(dim=(2, 3)), x.mean(dim=(2, 3))], dim=1)  # (b, 2w)
        return self.projection(self.norm(pooled))
