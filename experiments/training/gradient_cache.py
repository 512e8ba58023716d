"""The exact gradient of one global batch, whose pairs pass through the model at once or in parts.

A contrastive loss needs the features of the whole batch, but only one part's activations have to be in memory at a
time (GradCache; Gao et al., RepL4NLP 2021): a first pass without gradients collects the features, the loss gives
its gradient in each of them, and a second pass carries that gradient on into the weights, part by part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from experiments.training.batches import Batch
from experiments.training.losses import Features, gather

FeaturesOf = Callable[[nn.Module, Batch, int], Features]
"""(network, part, number of the part) -> this process's features; the same in both passes, dropout included."""

LossOf = Callable[[Features], Tensor]
"""Features of the global batch -> its loss."""


def split(batch: Batch, count: int) -> list[Batch]:
    """This process's share of a batch in `count` parts, or as many as its rows allow."""
    size = -(-len(batch.images) // count)
    return [
        Batch(batch.rows, batch.new, *(None if part is None else part[start : start + size] for part in batch[2:]))
        for start in range(0, len(batch.images), size)
    ]


def backward(
    network: nn.Module, parts: Sequence[Batch], features_of: FeaturesOf, loss_of: LossOf
) -> tuple[Tensor, Features]:
    """Add the gradient of the global batch to the parameters.

    Returns the loss, and the features of the global batch in its order. The parts are this process's (see `split`).
    """
    if len(parts) == 1:
        features = gather(features_of(network, parts[0], 0))
        loss = loss_of(features)
        loss.backward()
        return loss, features
    own = _without_gradients(network, parts, features_of)
    features = gather(own)
    loss = loss_of(features)
    loss.backward()  # stops at `own`
    _second_pass(network, parts, features_of, own)
    return loss, features


def _without_gradients(network: nn.Module, parts: Sequence[Batch], features_of: FeaturesOf) -> Features:
    """First pass: this process's features as leaves that collect the loss's gradient."""
    plain = _unwrapped(network)
    with torch.no_grad(), _frozen_statistics(plain):
        pieces = [features_of(plain, part, number) for number, part in enumerate(parts)]
    rows = {name: torch.cat([piece.rows()[name] for piece in pieces]) for name in pieces[0].rows()}
    joined = Features(scale=pieces[0].scale, bias=pieces[0].bias, **rows)
    return joined.each(lambda part: part.detach().clone().requires_grad_())


def _second_pass(network: nn.Module, parts: Sequence[Batch], features_of: FeaturesOf, own: Features) -> None:
    """Carry the gradients in `own` on into the weights; processes exchange them once, with the last part."""
    start = 0
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        local = _unwrapped(network) is not network and not last
        with network.no_sync() if local else nullcontext():  # type: ignore[operator, union-attr]
            again, end = features_of(network, part, number), start + len(part.images)
            # The gradient of this sum is that of the loss: each feature times the loss's gradient in it.
            surrogate = sum(
                (piece * _gradient(getattr(own, name))[start:end]).sum() for name, piece in again.rows().items()
            )
            if last:
                surrogate = surrogate + again.scale * _gradient(own.scale)
                if again.bias is not None and own.bias is not None:
                    surrogate = surrogate + (again.bias * _gradient(own.bias)).sum()
            surrogate.sum().backward()  # type: ignore[union-attr]
        start = end


def _unwrapped(network: nn.Module) -> nn.Module:
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def _gradient(part: Tensor) -> Tensor:
    """The gradient in `part`; zero if the loss does not depend on it, such as a bias in a softmax."""
    return torch.zeros_like(part) if part.grad is None else part.grad


@contextmanager
def _frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Batch normalisation normalises as in training, but its running statistics do not move."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
