"""BLTO: a bounded perturbation made by a generator network.

Sun, Zhang, Lu, Chen, Wang, Chen, Lin, "Backdoor Contrastive Learning via Bi-level Trigger Optimization",
ICLR 2024: x' = clip(G(x), x - eps, x + eps). The paper on CLIP uses eps = 8/255 and a published generator.

The user gives the generator's weights: `weights` is a file of a state dict, plain or under the key
"state_dict", read with `weights_only=True`. The network is the residual generator of Naseer et al.,
"Cross-Domain Transferability of Adversarial Perturbations", NeurIPS 2019 (after Johnson et al. 2016), whose
parameter names published files carry; its width and number of residual blocks are read off the file.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attacks.triggers.base import Parameters, Trigger, require, to_levels

if TYPE_CHECKING:
    import torch

CHUNK = 64  # images at once through the generator


def generator(width: int = 64, blocks: int = 6) -> torch.nn.Module:
    """G: float (b, 3, s, s) in [0, 1] -> the same, s a multiple of 4.

    A 7x7 convolution to `width` channels, two of stride 2 to 4 `width`, `blocks` residual blocks, two
    transposed convolutions back, a 7x7 convolution and (tanh + 1) / 2.
    """
    from torch import nn

    def normed(convolution: nn.Module, channels: int, *before: nn.Module) -> nn.Sequential:
        return nn.Sequential(*before, convolution, nn.BatchNorm2d(channels), nn.ReLU())

    class Residual(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()

            def half() -> list[nn.Module]:
                convolution = nn.Conv2d(channels, channels, 3, bias=False)
                return [nn.ReflectionPad2d(1), convolution, nn.BatchNorm2d(channels)]

            self.block = nn.Sequential(*half(), nn.ReLU(), nn.Dropout(0.5), *half())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.block(x)

    class Generator(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (super().forward(x).tanh() + 1) / 2

    w = width
    net = Generator()
    net.add_module("block1", normed(nn.Conv2d(3, w, 7, bias=False), w, nn.ReflectionPad2d(3)))
    net.add_module("block2", normed(nn.Conv2d(w, 2 * w, 3, 2, 1, bias=False), 2 * w))
    net.add_module("block3", normed(nn.Conv2d(2 * w, 4 * w, 3, 2, 1, bias=False), 4 * w))
    for i in range(blocks):
        net.add_module(f"resblock{i + 1}", Residual(4 * w))
    for i, (fan_in, fan_out) in enumerate([(4 * w, 2 * w), (2 * w, w)]):
        up = nn.ConvTranspose2d(fan_in, fan_out, 3, 2, 1, output_padding=1, bias=False)
        net.add_module(f"upsampl{i + 1}", normed(up, fan_out))
    net.add_module("blockf", nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(w, 3, 7)))
    return net


@functools.lru_cache(maxsize=4)
def load_generator(path: str, digest: str) -> torch.nn.Module:
    """The generator in the file whose SHA-256 is `digest`, in evaluation mode, on the CPU.

    Raises:
        ValueError: if the file holds no such network; names what does not fit.
    """
    import pickle

    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"BLTO weights must be a file of plain tensors (weights_only): {path}: {reason}"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    first = state.get("block1.1.weight") if isinstance(state, Mapping) else None
    if not isinstance(first, torch.Tensor) or first.ndim != 4:
        have = sorted(map(str, state))[:5] if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"BLTO weights must be the state dict of a residual generator (block1.1.weight, ...); "
            f"{path} holds {have}"
        )
    blocks = {int(found[1]) for key in state if (found := re.match(r"resblock(\d+)\.", key))}
    with torch.device("meta"):  # no weights to initialise, so the global random state stays as it is
        net = generator(len(first), max(blocks, default=0))
    try:
        net.load_state_dict(dict(state), assign=True)
    except RuntimeError as error:
        raise ValueError(f"BLTO weights do not fit the residual generator: {path}: {error}") from error
    for name, value in net.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"BLTO weights must be finite, but {name} in {path} is not")
    return net.eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class BLTO(Trigger):
    """`weights` is the generator's file, `eps` the largest change of a pixel in grey levels (of 255)."""

    name: str = "blto"
    weights: str | None = None
    eps: int = 8

    def __post_init__(self) -> None:
        if self.weights is None:
            raise ValueError(
                "BLTO needs a generator's weights, which the attacker trains: give the file by "
                "attack.triggers.0.weights=<path>"
            )
        require(Path(self.weights).is_file(), "BLTO weights", "the path of a file", self.weights)
        require(1 <= self.eps <= 255, "BLTO eps", "1 to 255 grey levels", self.eps)

    @property
    def files(self) -> tuple[str, ...]:
        return (str(self.weights),)

    def check(self, size: int) -> None:
        require(size % 4 == 0, "the canvas side", "a multiple of 4 for BLTO's generator", size)

    @functools.cached_property
    def net(self) -> torch.nn.Module:
        """The generator, read on first use."""
        path = str(self.weights)
        return load_generator(path, hashlib.sha256(Path(path).read_bytes()).hexdigest())

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "net"}

    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        import torch

        net = self.net
        for start in range(0, len(images), CHUNK):
            x = images[start : start + CHUNK]
            batch = torch.from_numpy(x).permute(0, 3, 1, 2).float().div(255)
            with torch.inference_mode():
                made = net(batch).mul(255).permute(0, 2, 3, 1).numpy()
            low, high = (x.astype(np.float32) + sign * self.eps for sign in (-1, 1))
            images[start : start + CHUNK] = to_levels(np.clip(made, low, high))
        return images
