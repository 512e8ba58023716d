"""How to train: the settings of `train=paper|small`, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.runtime import distributed
from experiments.training import losses
from experiments.training.crops import ResizedCrop, Shift
from experiments.training.losses import Loss
from experiments.training.stateful_losses import StatefulLoss

if TYPE_CHECKING:
    import torch
    from torch import nn

PRECISIONS = ("auto", "bfloat16", "float32")


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    batch_size: pairs of one step, over all processes.  warmup_epochs may be a fraction.
    loss: one of `experiments.training.losses`, or its name; or one that keeps a state, see
        `experiments.training.stateful_losses`.
    accumulate: number of parts in which a batch passes through the model, twice each, to need less memory. The
        gradient is that of the whole batch (`experiments.training.gradient_cache`), except that batch
        normalisation sees the parts one by one.
    clip_norm: bound of the gradient's norm (None: no bound).
    precision: `auto` is bfloat16 on GPUs and on CPUs with bfloat16 arithmetic, else float32.
    compile: torch.compile; a minute or more at the start.
    sync_batch_norm: batch normalisation over all processes, so that their number does not matter; the paper's
        own runs had False.
    """

    epochs: int = 32
    batch_size: int = 1024
    lr: float = 1e-3
    betas: Sequence[float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.2
    warmup_epochs: float = 4.25
    loss: Loss | StatefulLoss | str = "clip"
    accumulate: int = 1
    clip_norm: float | None = None
    precision: str = "auto"
    compile: bool = False
    sync_batch_norm: bool = True
    augment: Shift | ResizedCrop | None = field(default_factory=ResizedCrop)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr", "eps", "accumulate"):
            if not 0 < getattr(self, name) < math.inf:
                rule = "finite" if getattr(self, name) > 0 else "above 0"
                raise ValueError(f"train.{name} must be {rule}, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError(
                f"train.batch_size must be at least 2 pairs, which are contrasted, got {self.batch_size}"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"train.weight_decay must be at least 0 and finite, got {self.weight_decay}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"train.betas must be two numbers in [0, 1), got {list(self.betas)}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"train.clip_norm must be above 0, or null for no bound, got {self.clip_norm}")
        if not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(f"train.warmup_epochs must lie in [0, epochs={self.epochs}], got {self.warmup_epochs}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"train.precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        objective = self.objective  # an unknown name is refused here
        if isinstance(objective, StatefulLoss):
            objective.check(self.epochs)
            if distributed.world_size() > 1:
                raise ValueError(
                    f"train.loss={type(objective).__name__} keeps a state in one process and cannot be shared by "
                    f"several; torchrun started {distributed.world_size()}"
                )

    def check_sizes(self, n: int) -> None:
        """ValueError if the batch does not fit `n` pairs and the number of processes."""
        world = distributed.world_size()
        if self.batch_size > n:
            raise ValueError(f"train.batch_size must not exceed the number of pairs ({n}), got {self.batch_size}")
        if self.batch_size % world:
            raise ValueError(
                f"train.batch_size must be a multiple of the number of processes ({world}), got {self.batch_size}"
            )
        if self.accumulate > self.batch_size // world:
            raise ValueError(
                f"train.accumulate must not exceed the pairs of a process ({self.batch_size // world}), "
                f"got {self.accumulate}"
            )

    @property
    def objective(self) -> Loss | StatefulLoss:
        objective: Loss | StatefulLoss = losses.named(self.loss)
        return objective

    def resolved_precision(self, device: str) -> str:
        if self.precision != "auto":
            return self.precision
        import torch

        if device.startswith("cuda"):
            return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
        # oneDNN multiplies bfloat16 natively with these; without them it is slower than float32.
        flags = torch.backends.cpu.get_cpu_capability()
        native = flags == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return "bfloat16" if native and _has_flag("avx512_bf16") else "float32"

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        warmup = self.warmup_epochs * steps_per_epoch
        total = self.epochs * steps_per_epoch
        if step < warmup:
            return self.lr * (step + 1) / warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    def optimiser(self, model: nn.Module) -> torch.optim.AdamW:
        """AdamW; no decay on gains, biases and the logit scale (everything with fewer than two dimensions)."""
        import torch

        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for _, p in named if p.ndim >= 2]
        others = [p for _, p in named if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        betas = (self.betas[0], self.betas[1])
        return torch.optim.AdamW(groups, lr=self.lr, betas=betas, eps=self.eps, fused=True)


def _has_flag(flag: str) -> bool:
    try:
        return flag in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
