"""A patch that is optimised on a clean model, so that patched images lie near the target before any training.

Liang, Zhu, Liu, Wu, Cao, Chang, "BadCLIP: Dual-Embedding Guided Backdoor Attack on Multimodal Contrastive
Learning", CVPR 2024 (arXiv 2311.12075). A model changes little when it learns such a trigger, which makes the
backdoor hard to detect and to unlearn. `experiments.clip.patch` optimises the patch; the stage `patch` keeps it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attacks.triggers.badnets import BadNets
from attacks.triggers.base import Parameters, require
from attacks.triggers.blended import picture


@dataclass(frozen=True, kw_only=True)
class OptimisedPatch(BadNets):
    """A patch of `size` pixels in the centre, as in the paper, or at a random `place`.

    Args:
        patch: an image file with the patch; None: it is optimised.
        steps, lr, batch: of Adam on the patch's pixels.
        images: how many images of the data it is optimised on.
        weight, margin: of the loss that draws patched images to the target's own and away from what they were.
    """

    name: str = "optimised"
    place: str = "centre"
    patch: str | None = None
    steps: int = 400
    lr: float = 0.02
    batch: int = 64
    images: int = 2048
    weight: float = 500.0
    margin: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "batch", "images"):
            require(getattr(self, name) >= 1, f"OptimisedPatch {name}", "at least 1", getattr(self, name))
        require(self.lr > 0, "OptimisedPatch lr", "above 0", self.lr)
        require(self.weight >= 0, "OptimisedPatch weight", "at least 0", self.weight)
        if self.patch is not None:
            require(Path(self.patch).is_file(), "OptimisedPatch patch", "the path of an image file", self.patch)

    @property
    def needs_patch(self) -> bool:
        return self.patch is None

    @property
    def files(self) -> tuple[str, ...]:
        return () if self.patch is None else (self.patch,)

    def check(self, size: int) -> None:
        super().check(size)
        if self.patch is not None:
            picture(self.patch, self.size)  # a file that is no image is refused now

    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        if self.patch is None:
            raise ValueError(f"trigger {self.name!r} has no patch: optimise one, or give attack.triggers.0.patch")
        return self._paste(images, parameters, picture(self.patch, self.size))
